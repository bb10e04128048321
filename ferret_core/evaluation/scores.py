"""Figures from predictions, each with a bootstrap interval: how far it would move with another sample of questions as large.

Answers are graded one by one and drawn again with replacement, 1,000 times, from the same seed: the same predictions give the
same report, in whatever order they were made.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ferret_core.evaluation.benchmark import Benchmark, Figure, Paper, Prediction, Sums, Tally

RESAMPLINGS = 1000
_SEED = 231007704
_AT_A_TIME = 2**22  # weights held at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A figure of a group of predictions."""

    group: str
    figure: str
    value: float
    """NaN if it is not defined, as the precision of who never says yes."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end."""
    percent: bool
    of: float | None = None
    """How many questions, or whatever is counted, it is about."""
    paper: Paper = field(default_factory=dict)
    target: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """How many predictions were scored together, and what was counted among them."""

    name: str
    items: int
    missing: int
    """Without an answer: counted as wrong."""
    counts: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What a benchmark made of predictions."""

    groups: list[Group]
    scores: list[Score]
    notes: tuple[str, ...] = ()


def score(benchmark: Benchmark, predictions: Iterable[Prediction]) -> Scores:
    """Grades predictions and adds up. The order of predictions does not matter."""
    ordered = sorted(predictions, key=lambda prediction: prediction.item.id)
    by_group: dict[str, list[Prediction]] = defaultdict(list)
    for prediction in ordered:
        by_group[prediction.item.group].append(prediction)
    groups: list[Group] = []
    scores: list[Score] = []
    for name, members in sorted(by_group.items()):
        tallies = [benchmark.tally(prediction) for prediction in members]
        missing = sum(prediction.answer is None for prediction in members)
        counts = {each: float(sum(tally.get(each, 0.0) for tally in tallies)) for each in benchmark.counts}
        groups.append(Group(name=name, items=len(members), missing=missing, counts=counts))
        scores += _scores(name, tallies, benchmark.figures)
    if not benchmark.joint:
        return Scores(groups=groups, scores=scores)
    joint = benchmark.joint(ordered)
    for name, together in joint.tallies.items():
        scores += _scores(name, together, joint.figures)
    return Scores(groups=groups, scores=scores, notes=joint.notes)


def _scores(group: str, tallies: Sequence[Tally], figures: Iterable[Figure]) -> Iterator[Score]:
    """The figures that are defined, with their intervals."""
    names = sorted(set().union(*tallies))
    matrix = np.array([[tally.get(each, 0.0) for each in names] for tally in tallies])
    total, resampled = _sums(names, matrix.sum(axis=0, keepdims=True)), _sums(names, _resample(matrix))
    for figure in figures:
        value = float(figure.value(total)[0])
        if not np.isnan(value):
            low, high = np.nanpercentile(figure.value(resampled), (2.5, 97.5))
            yield Score(
                group=group,
                figure=figure.name,
                value=value,
                low=float(low),
                high=float(high),
                percent=figure.percent,
                of=float(total[figure.of][0]) if figure.of else None,
                paper=figure.paper.get(group, {}),
                target=figure.target,
            )


def _sums(names: list[str], matrix: np.ndarray) -> Sums:
    """Columns by name."""
    sums: defaultdict[str, np.ndarray] = defaultdict(lambda: np.zeros(len(matrix)))
    sums.update({name: matrix[:, column] for column, name in enumerate(names)})
    return sums


def _resample(matrix: np.ndarray) -> np.ndarray:
    """Sums over rows drawn with replacement, `(RESAMPLINGS, columns)`, of a matrix `(rows, columns)`."""
    rng, rows = np.random.default_rng(_SEED), len(matrix)
    step = max(1, _AT_A_TIME // rows)
    sizes = [min(step, RESAMPLINGS - start) for start in range(0, RESAMPLINGS, step)]
    return np.concatenate([rng.multinomial(rows, np.full(rows, 1 / rows), size) @ matrix for size in sizes])
