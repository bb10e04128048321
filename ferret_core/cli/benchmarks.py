"""`ferret eval NAME`: what is asked, by benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ferret_core.cli.evaluate import PLAYGROUND, Images, Questions, command, pictures_at

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ferret_core.data.build.scene import Scene
    from ferret_core.evaluation.benchmark import Item

Flickr30k = Annotated[
    Path,
    typer.Argument(metavar="DIR", help="With Annotations, Sentences and test.txt, as published.", exists=True, file_okay=False),
]

app = typer.Typer(no_args_is_help=True, help="Measure a checkpoint.")


def refexp(
    annotations: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="Directory with refs(BY).p and instances.json, or the original's .json.", exists=True
        ),
    ],
    dataset: Annotated[str, typer.Option(help="refcoco, refcoco+ or refcocog; a .json says it itself.")] = "refcoco",
    split: Annotated[str, typer.Option(help="val, test, testA or testB; by default as a file's name ends, or val.")] = "",
) -> Questions:
    """Referring expressions: is what an expression means found? Acc@0.5.

    Example: ferret eval refexp refcoco --split testA --images coco --output report
    """
    from ferret_core.evaluation.original_answers import match_by
    from ferret_core.evaluation.refexp import BENCHMARK, read_refexp

    return Questions(BENCHMARK, read_refexp(annotations, dataset, split), match_by("image_id", answer="text"))


def pope(
    questions: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="POPE's .json, a questions.jsonl, or COCO's directory to build from.", exists=True),
    ],
    sampling: Annotated[str, typer.Option(help="Of a directory: random, popular or adversarial.")] = "random",
    scenes: Annotated[int, typer.Option(help="Of a directory: how many pictures.", min=1)] = 500,
    seed: Annotated[int, typer.Option(help="Of a directory: of every choice.")] = 0,
) -> Questions:
    """POPE: is an object there that is not? Accuracy, precision, recall, F1 and share of yes.

    Example: ferret eval pope coco_pope_random.json --images val2014 --output report
    """
    from ferret_core.evaluation.original_answers import match_by
    from ferret_core.evaluation.pope import BENCHMARK, build_pope, read_pope, read_scenes
    from ferret_core.evaluation.questions import read_questions

    if questions.is_file():
        items = (read_questions if questions.suffix == ".jsonl" else read_pope)(questions)
    else:
        items = build_pope(read_scenes(questions), sampling, images=scenes, seed=seed)
    return Questions(BENCHMARK, items, match_by("question_id", answer="answer"))


def flickr(
    annotations: Flickr30k,
    split: Annotated[str, typer.Option(help="val or test.")] = "val",
) -> Questions:
    """Flickr30k Entities: are the phrases of a caption found? Recall@1, 5 and 10 by type of phrase.

    Example: ferret eval flickr flickr30k --split test --images flickr30k-images --output report
    """
    from ferret_core.evaluation.flickr_entities import BENCHMARK, read_flickr
    from ferret_core.evaluation.original_answers import match_by

    return Questions(BENCHMARK, read_flickr(annotations, split), match_by("image_id", "sentence_id", answer="text"))


def caption(
    annotations: Flickr30k,
    split: Annotated[str, typer.Option(help="val or test.")] = "test",
) -> Questions:
    """Grounded captioning on Flickr30k: BLEU@4, METEOR, CIDEr, SPICE, and F1 of objects named and located.

    Example: ferret eval caption flickr30k --images flickr30k-images --output report
    """
    from ferret_core.evaluation.captioning import BENCHMARK, read_captioning

    return Questions(BENCHMARK, read_captioning(annotations, split))


def lvis(
    questions: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="LVIS's directory to build questions from, or a questions.jsonl.", exists=True),
    ],
    objects: Annotated[
        int, typer.Option(help="Of a directory: how many objects, each asked about in three ways.", min=1)
    ] = 2667,
    seed: Annotated[int, typer.Option(help="Of a directory: of every choice.")] = 0,
    skip_bad: Annotated[int, typer.Option(help="Of a directory: how many broken items may be left out.", min=0)] = 0,
) -> Questions:
    """LVIS referring: which of two classes is a point, a box, a free form?

    Example: ferret eval lvis lvis --images coco --output report
    """
    from ferret_core.data.build.lvis import read_lvis
    from ferret_core.data.build.reading import Problems, Request
    from ferret_core.evaluation.lvis_referring import BENCHMARK, build_lvis
    from ferret_core.evaluation.original_answers import match_by
    from ferret_core.evaluation.questions import read_questions

    if questions.is_file():
        return Questions(BENCHMARK, read_questions(questions), match_by("question_id", answer="text"))
    problems = Problems(skip_bad)
    scenes = read_lvis(Request(questions, "validation", problems))
    return Questions(BENCHMARK, build_lvis(scenes, objects, seed, problems), match_by("question_id", answer="text"))


def pointqa(
    annotations: Annotated[str, typer.Argument(metavar="DIR", help="PointQA's Datasets, COCO's directory, or playground.")],
    images: Images = None,
    kind: Annotated[str, typer.Option(help="Of PointQA's: local, or counting, which is LookTwiceQA.")] = "local",
    split: Annotated[str, typer.Option(help="Of PointQA's: a part of its files' names; by default the test split.")] = "",
    form: Annotated[str, typer.Option(help="How objects are pointed at: point or box.")] = "point",
    asked: Annotated[str, typer.Option(help="Of LookTwiceQA's: obj, super or general, as in cats, animals, these.")] = "obj",
    scenes: Annotated[int, typer.Option(help="Of COCO's or the playground's: how many pictures.", min=1)] = 100,
    seed: Annotated[int, typer.Option(help="Of COCO's or the playground's: of every choice.")] = 0,
) -> Questions:
    """PointQA: questions about the object at a point. Published ones, or counting built from annotations.

    Example: ferret eval pointqa pointingqa/Datasets --kind local --images VG_100K --output report
    """
    from ferret_core.evaluation.asking import sizes_below
    from ferret_core.evaluation.pointqa import BENCHMARK, build_counting, read_pointqa

    if any((Path(annotations) / folder).is_dir() for folder in ("LocalQA", "LookTwiceQA")):
        if not images:
            raise ValueError("--images: where are Visual Genome's pictures, in one directory?")
        return Questions(BENCHMARK, read_pointqa(Path(annotations), sizes_below(images), kind, split, form, asked))
    items = build_counting(_scenes(annotations, scenes, seed), form, seed)
    return Questions(BENCHMARK, items, pictures=_drawn(annotations))


def visual7w(
    annotations: Annotated[
        str, typer.Argument(metavar="PATH", help="dataset_v7w_pointing.json, COCO's directory, or playground.")
    ],
    images: Images = None,
    split: Annotated[str, typer.Option(help="Of Visual7W's: train, val or test.")] = "test",
    scenes: Annotated[int, typer.Option(help="Of COCO's or the playground's: how many pictures.", min=1)] = 100,
    seed: Annotated[int, typer.Option(help="Of every choice, the candidates' order among them.")] = 0,
) -> Questions:
    """Visual7W pointing: which of four boxes answers the question?

    Example: ferret eval visual7w dataset_v7w_pointing.json --images visual7w --output report
    """
    from ferret_core.evaluation.asking import sizes_below
    from ferret_core.evaluation.visual7w import BENCHMARK, build_which, read_visual7w

    if Path(annotations).is_file():
        if not images:
            raise ValueError("--images: where are Visual7W's pictures?")
        return Questions(BENCHMARK, read_visual7w(Path(annotations), sizes_below(images), split, seed))
    items = build_which(_scenes(annotations, scenes, seed), seed)
    return Questions(BENCHMARK, items, pictures=_drawn(annotations))


def bench(
    questions: Annotated[
        Path, typer.Argument(metavar="DIR", help="Ferret-Bench as published: rule.json and three directories.", exists=True)
    ],
    images: Annotated[
        Path, typer.Option(help="Directory of COCO's val2017 pictures.", exists=True, file_okay=False, resolve_path=True)
    ],
    reviews: Annotated[
        Path, typer.Option(help="Directory of the judge's answers; one that is there is used.", file_okay=False)
    ],
    judge: Annotated[str, typer.Option(help="The judge's name on its server.")] = "gpt-4-0314",
    judge_url: Annotated[
        str, typer.Option(help="Base URL of a chat completions server; the key is OPENAI_API_KEY.", envvar="OPENAI_BASE_URL")
    ] = "https://api.openai.com/v1",
    price_in: Annotated[float, typer.Option(help="Dollars a million tokens that the judge reads.", min=0)] = 0.0,
    price_out: Annotated[float, typer.Option(help="Dollars a million tokens that the judge writes.", min=0)] = 0.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what judging would take, and ask nobody.")] = False,
) -> Questions:
    """Ferret-Bench, judged by a language model relative to the reference answers; the reviews' report is in `then`.

    Example: ferret eval bench ferret_gpt4_data --images val2017 --reviews reviews --output report
    """
    from ferret_core.data.build.language_model import LanguageModel
    from ferret_core.evaluation.asking import predict_with
    from ferret_core.evaluation.ferret_bench import (
        ANSWERS,
        REVIEWS,
        ask_judge,
        cost,
        estimate,
        read_bench,
        spent,
        to_judge,
    )

    items = list(read_bench(questions, images))
    if dry_run:
        typer.echo(f"judging all {len(items)} answers would take about {cost(estimate(items), price_in, price_out)}")
        raise typer.Exit
    model = LanguageModel(url=judge_url, model=judge, cache=reviews, temperature=0.0)
    asker = ask_judge(model)

    def ask(batch: Sequence[Item], max_new_tokens: int) -> Sequence[str | None]:
        answers = asker(batch, max_new_tokens)
        typer.echo(f"reviews so far: {cost(spent(reviews), price_in, price_out)}", err=True)
        return answers

    judging = f"{judge} of {judge_url}", predict_with(ask, at_a_time=8)
    return Questions(ANSWERS, items, then=lambda answered: Questions(REVIEWS, to_judge(answered), judge=judging))


def playground(
    scenes: Annotated[int, typer.Option(help="How many scenes of the test split.", min=1)] = 1000,
    first: Annotated[int, typer.Option(help="Index of the first scene.", min=0)] = 0,
    seed: Annotated[int, typer.Option(help="Another seed makes other scenes.", min=0)] = 0,
    sprites: Annotated[
        str, typer.Option(help="How things are drawn: 3d, flat, ink, comic, or a directory of CODEPOINT.webp, .png or .svg.")
    ] = "3d",
) -> Questions:
    """Unseen playground scenes: regions named, phrases located, questions answered, objects captioned. No download.

    Example: ferret eval playground --scenes 100 --sprites flat --output report
    """
    from ferret_core.data.playground.styles import open_style
    from ferret_core.evaluation.playground import BENCHMARK, playground_items

    open_style(sprites)  # or a clear error, before anything slow
    return Questions(BENCHMARK, playground_items(scenes, first, seed, sprites), pictures=PLAYGROUND)


def robustness(
    annotations: Annotated[str, typer.Argument(metavar="DIR", help="COCO's directory, or playground.")] = "playground",
    scenes: Annotated[int, typer.Option(help="How many pictures.", min=1)] = 100,
    seed: Annotated[int, typer.Option(help="Of every choice.")] = 0,
) -> Questions:
    """Does it matter how one points? The same objects as points, boxes, scribbles, polygons, masks, and inexact boxes.

    Example: ferret eval robustness playground --scenes 20 --output report
    """
    from ferret_core.evaluation.pointing import ROBUSTNESS, robustness_items

    return Questions(ROBUSTNESS, robustness_items(_scenes(annotations, scenes, seed), seed), pictures=_drawn(annotations))


def roundtrip(
    annotations: Annotated[str, typer.Argument(metavar="DIR", help="COCO's directory, or playground.")] = "playground",
    scenes: Annotated[int, typer.Option(help="How many pictures.", min=1)] = 100,
    seed: Annotated[int, typer.Option(help="Of the playground's scenes.")] = 0,
) -> Questions:
    """Are referring and grounding of one mind? What is named from its box is located by that name; --output has a `then`.

    Example: ferret eval roundtrip playground --scenes 20 --output report
    """
    from ferret_core.evaluation.pointing import NAMES, ROUND_TRIP, round_trip_items, trip_back

    return Questions(
        NAMES,
        round_trip_items(_scenes(annotations, scenes, seed)),
        pictures=_drawn(annotations),
        then=lambda named: Questions(ROUND_TRIP, trip_back(named)),
    )


def _scenes(annotations: str, count: int, seed: int) -> Iterable[Scene]:
    from ferret_core.evaluation.pointing import playground_scenes
    from ferret_core.evaluation.pope import read_scenes

    if annotations == PLAYGROUND:
        return playground_scenes(count, seed=seed)
    return islice(read_scenes(Path(annotations)), count)


def _drawn(annotations: str) -> str:
    """Where the pictures are, if they need no directory."""
    return PLAYGROUND if annotations == PLAYGROUND else ""


def score(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="The --output of an evaluation.", exists=True, file_okay=False)
    ],
    images: Images = None,
    benchmark: Annotated[str, typer.Option(help="Of predictions.jsonl from elsewhere: which benchmark it is of.")] = "",
) -> None:
    """Score the predictions of a directory again, and write its report.

    Example: ferret eval score report --images val2014
    """
    from ferret_core.evaluation.benchmarks import BENCHMARKS
    from ferret_core.evaluation.runs import Run, write_report

    run = Run.load(directory) if Run.is_in(directory) or not benchmark else None
    name = run.benchmark if run else benchmark
    if name not in BENCHMARKS:
        raise ValueError(f"{directory}: there is no benchmark {name!r}; known: {', '.join(BENCHMARKS)}")
    if benchmark and name != benchmark:
        raise ValueError(f"--benchmark: {directory} holds an evaluation of {name}")
    place = str(images) if images or not run else run.pictures
    typer.echo(write_report(directory, BENCHMARKS[name], pictures_at(place)), nl=False)


for _read in (playground, refexp, flickr, caption, lvis, pope, pointqa, visual7w, bench, robustness, roundtrip):
    app.command()(command(_read))
app.command()(score)
