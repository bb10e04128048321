"""What every command of `ferret eval` does with its questions: who is asked, going on, scoring, reporting."""

from __future__ import annotations

import atexit
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache, partial, wraps
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ferret_core.checkpoint.bundled import DEFAULT
from ferret_core.cli import cluster, connection

if TYPE_CHECKING:
    from ferret_core.evaluation.asking import Pictures, Predict
    from ferret_core.evaluation.benchmark import Benchmark, Item, Prediction
    from ferret_core.evaluation.original_answers import Match

PLAYGROUND = "playground"
"""Where pictures are that are drawn, not read."""


@dataclass(frozen=True)
class Questions:
    """What a command asks."""

    benchmark: Benchmark
    items: Iterable[Item]
    match: Match | None = None
    """How answers of the original's scripts belong to the items; None if it has no such benchmark."""
    pictures: str = ""
    """`PLAYGROUND` if the pictures are drawn; else they come from a directory."""
    then: Callable[[list[Prediction]], Questions] | None = None
    """What to ask when all is answered, in the directory `then`."""
    judge: tuple[str, Predict] | None = None
    """Who is asked about the model's answers, by name, if not the model itself."""


@dataclass(frozen=True)
class Respondent:
    """Who is asked."""

    name: str
    revision: str
    """A hash of its weights, or of whatever makes its answers."""
    predict: Predict
    """Called if there is something to ask; only then is anything loaded."""


def _nowhere() -> Path:
    """A directory that is gone when the process ends."""
    directory = TemporaryDirectory()
    atexit.register(directory.cleanup)
    return Path(directory.name)


Output = Annotated[
    Path,
    typer.Option(
        help="Directory of predictions and report; one that is there goes on.",
        file_okay=False,
        default_factory=_nowhere,
        show_default="the report is printed, and nothing kept",
    ),
]
Images = Annotated[
    Path | None,
    typer.Option(help="Directory of the pictures, to ask and to draw.", exists=True, file_okay=False, resolve_path=True),
]


def evaluate(
    questions: Questions,
    output: Output,
    images: Images = None,
    model: connection.Model = "",
    server: connection.Server = None,
    token: connection.Token = "",
    tls: connection.TLS = False,
    tls_ca: connection.TLSCa = None,
    tls_cert: connection.TLSCert = None,
    tls_key: connection.TLSKey = None,
    ray: cluster.Address = None,
    workers: cluster.Workers = 1,
    worker_cpus: cluster.WorkerCPUs = 1,
    worker_gpus: cluster.WorkerGPUs = 0,
    batch_size: Annotated[int, typer.Option(help="Questions answered at a time.", min=1)] = 32,
    limit: Annotated[int | None, typer.Option(help="Only so many questions, the first.", min=1)] = None,
    answers: Annotated[
        Path | None,
        typer.Option(
            help="Directory of answers by the original's scripts (0_of_1.jsonl, ...): score these, ask nobody.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
) -> None:
    """Asks, goes on where it was stopped, scores and reports."""
    if sum(map(bool, (server, ray, answers))) > 1:
        raise ValueError("--server (or FERRET_SERVER), --ray and --answers: one of them")
    if not ray and (workers, worker_cpus, worker_gpus) != (1, 1, 0):
        raise ValueError("--workers, --worker-cpus and --worker-gpus: only with --ray")
    if answers and limit:
        raise ValueError("--limit: not with --answers, which are scored whole")
    place = str(images) if images else questions.pictures
    pictures = pictures_at(place)
    if answers:
        respondent = _wrote(answers, questions)
    elif not pictures:
        raise ValueError("--images: where are the pictures to ask about?")
    elif server:
        described = {"token": token, "tls": tls, "ca": tls_ca, "certificate": tls_cert, "key": tls_key}
        respondent = _platform(partial(connection.connect, server, model, **described), model, pictures, batch_size)
    else:
        name = model or DEFAULT
        resources = {"workers": workers, "cpus": worker_cpus, "gpus": worker_gpus} if ray else {}
        respondent = _checkpoint(name, pictures, batch_size, ray, resources)
    items = list(islice(questions.items, limit))
    _stage(questions.benchmark, items, respondent, output, place)
    if questions.then:
        after = questions.then(_made(output, items))
        if after.judge:  # a report on the judged, which names the judge as well
            respondent = replace(respondent, name=f"{respondent.name}, judged by {after.judge[0]}", predict=after.judge[1])
        _stage(after.benchmark, list(after.items), respondent, output / "then", place)


def _stage(benchmark: Benchmark, items: list[Item], respondent: Respondent, output: Path, place: str) -> None:
    """Asks what is not answered yet, and reports."""
    from ferret_core.evaluation.runs import Run, ask_missing, write_report

    Run.of(benchmark, items, respondent.name, respondent.revision, place).start(output, items)
    ask_missing(output, benchmark, items, respondent.predict)
    typer.echo(write_report(output, benchmark, pictures_at(place)), nl=False)


def _made(output: Path, items: list[Item]) -> list[Prediction]:
    """The predictions of a directory, in the order of the items."""
    from ferret_core.evaluation.predictions import read_predictions
    from ferret_core.evaluation.runs import PREDICTIONS

    made = {prediction.item.id: prediction for prediction in read_predictions(output / PREDICTIONS)}
    return [made[item.id] for item in items]


def pictures_at(place: str) -> Pictures | None:
    """Pictures of a directory, or the playground's; None if the place is not known, or is there no longer."""
    from ferret_core.evaluation.asking import pictures_below
    from ferret_core.evaluation.playground import playground_picture

    if place == PLAYGROUND:
        return playground_picture
    return pictures_below(Path(place)) if place and Path(place).is_dir() else None


def _checkpoint(name: str, pictures: Pictures, batch_size: int, ray: str | None, resources: dict[str, Any]) -> Respondent:
    """A checkpoint, loaded in this process or by workers of a Ray cluster."""
    from ferret_core.checkpoint.revision import revision
    from ferret_core.evaluation.asking import ask_here, predict_with
    from ferret_core.predictor import FerretPredictor

    @cache
    def loaded() -> Predict:
        if ray:
            return cluster.predict_on_ray(ray, name, pictures, batch_size=batch_size, at_a_time=2 * batch_size, **resources)
        return predict_with(ask_here(FerretPredictor.from_pretrained(name), pictures, batch_size), 2 * batch_size)

    return Respondent(name, revision(name), lambda items, max_new_tokens: loaded()(items, max_new_tokens))


def _platform(connect: Callable[[], Any], model: str, pictures: Pictures, batch_size: int) -> Respondent:
    """A model of the platform that `connect` connects to."""
    from ferret_core.evaluation.asking import predict_on_platform

    with connect() as client:
        served, server = client.revisions(), client.server
    name = model or next(iter(served), "")
    if name not in served:
        raise ValueError(f"--model: {server} serves no {name!r}; it serves {', '.join(served)}")
    revision = served[name] or "not told: the platform is older than this command"
    return Respondent(name, revision, predict_on_platform(connect, pictures, batch_size))


def _wrote(answers: Path, questions: Questions) -> Respondent:
    """What the original's scripts wrote."""
    from ferret_core.evaluation.original_answers import digest, read_rows

    match = questions.match
    if not match:
        raise ValueError(f"--answers: the original has no benchmark {questions.benchmark.name}")
    rows = read_rows(answers)
    return Respondent(f"answers in {answers}", digest(rows), lambda items, _: iter([match(items, rows)]))


def command(read: Callable[..., Questions]) -> Callable[..., None]:
    """A command that evaluates what `read` reads: its parameters are those of `read`, and then those of `evaluate`."""
    own = inspect.signature(read, eval_str=True).parameters
    shared = list(inspect.signature(evaluate, eval_str=True, locals={}).parameters.values())[1:]
    common = [each for each in shared if each.name not in own]

    @wraps(read)
    def run(**given: Any) -> None:
        questions = read(**{name: given[name] for name in own})
        evaluate(questions, **{each.name: given[each.name] for each in shared})

    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*own.values(), *common)]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run
