"""Whether two checkpoints are the same model: weight by weight under common names, whatever their layouts and files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from ferret_core.checkpoint.bundled import checkpoint_path
from ferret_core.checkpoint.layouts import TOWER
from ferret_core.checkpoint.original import read_weights
from ferret_core.checkpoint.weights import Weight, by_name

_BLOCK = 2**24  # values compared at a time


@dataclass(frozen=True)
class Comparison:
    """Two checkpoints, compared."""

    weights: int
    """How many are in both, in the same shape."""
    largest: float
    """The largest difference of two values."""
    problems: tuple[str, ...]
    """Weights that differ by more than the tolerance, or are not in both."""
    without_tower: bool
    """Whether only one has a vision tower, which was not compared then."""


def compare(first: str | Path, second: str | Path, tolerance: float = 0.0) -> Comparison:
    """Compares all values, as float64 whatever their types. Vision towers count where both sides have one.

    Args:
        first: a bundled checkpoint, a directory or a file.
        second: another.
        tolerance: the largest difference that is none.

    Raises:
        ValueError: one of them has no weights, or a damaged file.
    """
    one, two = _weights(first), _weights(second)
    without_tower = _has_tower(one) != _has_tower(two)
    if without_tower:
        one, two = ({name: each for name, each in side.items() if not name.startswith(TOWER)} for side in (one, two))
    problems = [f"{name} is in {first} only" for name in one if name not in two]
    problems += [f"{name} is in {second} only" for name in two if name not in one]
    largest, count = 0.0, 0
    for name in tqdm([name for name in one if name in two], unit="weight", desc="comparing"):
        if one[name].shape != two[name].shape:
            problems.append(f"{name} is {one[name].shape} and {two[name].shape}")
            continue
        count += 1
        difference = max(_differences(one[name], two[name]), default=0.0)
        if not difference <= tolerance:
            problems.append(f"{name} differs by {difference:.3g}")
        largest = max(largest, difference)
    return Comparison(count, largest, tuple(problems), without_tower)


def _weights(path: str | Path) -> dict[str, Weight]:
    path = Path(checkpoint_path(str(path)))
    if not path.exists():
        raise ValueError(f"{path}: does not exist")
    found = by_name(read_weights(path))
    if path.is_dir():
        found |= by_name(read_weights(path / "vision_tower"))
    if not found:
        raise ValueError(f"{path}: no weights to compare")
    return found


def _has_tower(weights: Mapping[str, Weight]) -> bool:
    return any(name.startswith(TOWER) for name in weights)


def _differences(one: Weight, two: Weight) -> Iterator[float]:
    """The largest of each block; infinite where one is no number and the other is."""
    first, second = one.read().reshape(-1), two.read().reshape(-1)
    for start in range(0, len(first), _BLOCK):
        a, b = (side[start : start + _BLOCK].double() for side in (first, second))
        same = (a == b) | (a.isnan() & b.isnan())
        yield float(torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=float("inf"), posinf=float("inf")).max())
