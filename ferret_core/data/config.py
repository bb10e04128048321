"""Configuration of training data, a part of `TrainConfig`. The docstring under each field is its help."""

from __future__ import annotations

from dataclasses import dataclass, replace
from glob import glob, has_magic
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Records of one kind, in one file or many."""

    path: str
    """Records: a `.jsonl`, `.parquet` or original `.json` file; or a directory, or a pattern such as `vg/*.jsonl`, of many."""
    images: str = ""
    """Where its pictures lie: a directory or s3://BUCKET/PREFIX; by default beside the records."""
    weight: float = 1.0
    """How often each record is seen in an epoch; 3 is three times, 0.2 a fifth of the records."""

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise ValueError(f"weight: of {self.path} must be above 0, got {self.weight}; leave the source out")

    def files(self) -> list[SourceConfig]:
        """A source for each file that the path stands for, in order. Raises `FileNotFoundError` if there is none."""
        path = Path(self.path)
        pattern = str(path / "*.jsonl") if path.is_dir() else self.path
        paths = sorted(glob(pattern)) if has_magic(pattern) else [self.path]
        if not paths:
            raise FileNotFoundError(f"data.sources: no file matches {pattern}")
        return [replace(self, path=each) for each in paths]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is learned from."""

    sources: tuple[SourceConfig, ...] = ()
    """Training data. Empty for the playground, whose scenes are made on the fly."""
    validation: tuple[SourceConfig, ...] = ()
    """Held-out data of the same kind."""
    points: Literal["center", "gaussian", "uniform"] = "center"
    """Where in an object a point is placed: next to its middle, near it (sigma 0.15 of the box), or anywhere (paper,
    section 4.1)."""
    use_masks: bool = True
    """Whether an object's mask, where it has one, decides where points may fall; it limits the object's region either way."""
    keep_form: bool = False
    """Whether an object that was shown as a point keeps that point in later questions and answers."""
    max_length: int = 2048
    """Most text tokens of a sample, the image counted as one; what is longer is cut at the end."""
    skip_bad: int = 0
    """How many records that cannot be used may be left out, each reported; one more ends the run."""
    workers: int = 1
    """Processes that make samples ahead of need, for each training process; 0 makes them in between."""
