"""An evaluation in a directory: asked, stopped, gone on with, and scored as often as one likes.

run.json             what was asked of whom; a directory goes on only with the same
predictions.jsonl    every answer with its question (see `predictions`)
report.md, .json     figures (see `results`)
scores.svg           the same as bars
gallery.html         the worst answers and random ones, drawn
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tqdm import tqdm

from ferret_core.disk import written_whole
from ferret_core.evaluation.asking import Pictures, Predict
from ferret_core.evaluation.benchmark import Benchmark, Item, Prediction
from ferret_core.evaluation.gallery import gallery
from ferret_core.evaluation.predictions import PredictionFile, read_predictions
from ferret_core.evaluation.questions import write_questions
from ferret_core.evaluation.results import chart, markdown, to_json
from ferret_core.evaluation.scores import Scores, score

PREDICTIONS = "predictions.jsonl"
QUESTIONS = "questions.jsonl"
_RUN = "run.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What was asked of whom."""

    benchmark: str
    model: str
    """The checkpoint's name or path, or its name on the platform."""
    revision: str
    """Hash of the checkpoint's files, as told by the platform if one was asked."""
    items: int
    """How many questions."""
    questions: str
    """Hash of all of them, with what was expected."""
    max_new_tokens: int
    pictures: str = ""
    """Where they are, to draw them again: a directory, or `playground`. They may move: that is not another run."""

    @classmethod
    def of(cls, benchmark: Benchmark, items: Sequence[Item], model: str, revision: str, pictures: str = "") -> Run:
        """Raises `ValueError` if there are no items, two have the same id, or one is not a question of the benchmark."""
        if not items:
            raise ValueError(f"{benchmark.name}: no questions")
        ids: set[str] = set()
        digest = hashlib.sha256()
        for item in items:
            if item.id in ids:
                raise ValueError(f"{benchmark.name}: two questions have the id {item.id!r}")
            ids.add(item.id)
            benchmark.tally(Prediction(item, None))  # or a clear error, before anybody is asked
            digest.update(json.dumps(item.to_json(), sort_keys=True).encode() + b"\n")
        return cls(
            benchmark=benchmark.name, model=model, revision=revision, items=len(items), questions=digest.hexdigest(),
            max_new_tokens=benchmark.max_new_tokens, pictures=pictures,
        )  # fmt: skip

    @staticmethod
    def is_in(directory: Path) -> bool:
        """Whether a directory has one."""
        return (directory / _RUN).exists()

    @classmethod
    def load(cls, directory: Path) -> Run:
        """Of a directory. Raises `ValueError` if there is none."""
        path = directory / _RUN
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{path}: tells of no evaluation: {error}") from error

    def start(self, directory: Path, items: Sequence[Item] = ()) -> None:
        """Notes the run, and its questions if given, in a new directory. Raises `ValueError` if another one is there."""
        if self.is_in(directory):
            there = asdict(replace(Run.load(directory), pictures=self.pictures))
            other = [f"{name} {there[name]!r}, not {value!r}" for name, value in asdict(self).items() if there[name] != value]
            if other:
                raise ValueError(f"{directory}: holds an evaluation with {'; '.join(other)}; use another --output")
        elif items:
            write_questions(directory / QUESTIONS, items)
        with written_whole(directory / _RUN) as file:
            file.write(json.dumps(asdict(self), indent=1).encode() + b"\n")


def ask_missing(directory: Path, benchmark: Benchmark, items: Sequence[Item], predict: Predict) -> None:
    """Asks what is not yet answered in `directory`, with a bar; rows go to the disk as they come.

    What is interrupted, even by `kill -9`, goes on from there when it is called again: no row is lost or there twice.
    """
    with PredictionFile(directory / PREDICTIONS) as file:
        left = [item for item in items if item.id not in file.ids]
        with tqdm(total=len(items), initial=len(items) - len(left), unit="question", desc=benchmark.name) as bar:
            for batch in predict(left, benchmark.max_new_tokens) if left else ():
                file.append(batch)
                bar.update(len(batch))


def write_report(directory: Path, benchmark: Benchmark, pictures: Pictures | None = None) -> str:
    """Scores the predictions of a directory and writes its report, which is returned."""
    predictions = list(read_predictions(directory / PREDICTIONS))
    if not predictions:
        raise ValueError(f"{directory / PREDICTIONS}: has no predictions")
    facts = {"answered": f"{len(predictions):,} questions"}
    if Run.is_in(directory):  # else predictions from elsewhere
        run = Run.load(directory)
        facts = {
            "model": run.model,
            "revision": run.revision,
            "answered": f"{len(predictions):,} of {run.items:,} questions",
            "questions": f"sha256 {run.questions}",
        }
    scores: Scores = score(benchmark, predictions)
    text = markdown(benchmark, scores, facts)
    for name, content in (
        ("report.md", f"{text}\n![Figures as bars](scores.svg)\n"),
        ("scores.svg", chart(scores)),
        ("report.json", json.dumps(to_json(benchmark, scores, facts), indent=1, allow_nan=False) + "\n"),
        ("gallery.html", gallery(benchmark, predictions, pictures)),
    ):
        with written_whole(directory / name) as file:
            file.write(content.encode(errors="backslashreplace"))
    return text
