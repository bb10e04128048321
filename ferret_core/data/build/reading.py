"""Reading downloads: files by the name they were published under, and what is wrong with them.

A broken item is an error that names file and item; with `--skip-bad N`, the first N are reported and left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class Problems:
    """What was left out because it was broken. One more than `allowed` raises `ValueError`; None: nobody was asked."""

    def __init__(self, allowed: int | None = None) -> None:
        self.allowed = allowed
        self.messages: list[str] = []

    @contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Around the reading of one item: its `ValueError`, or a field missing or of the wrong type, is noted."""
        try:
            yield
        except TooManyProblemsError:
            raise
        except KeyError as error:
            self.note(f"{place}: field {error} is missing", error)
        except (ValueError, TypeError, IndexError, AttributeError) as error:
            self.note(f"{place}: {error}", error)

    def note(self, message: str, cause: BaseException | None = None) -> None:
        """Notes a problem. Raises `ValueError` if it is one too many."""
        self.messages.append(message)
        if len(self.messages) > (self.allowed or 0):
            hint = "" if self.allowed is None else " (--skip-bad N leaves out up to N such items)"
            raise TooManyProblemsError(message + hint) from cause


def lines(path: Path) -> list[str]:
    """Lines of a text file, ended by nothing but line feeds. Raises `ValueError` if it is not there."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


class TooManyProblemsError(ValueError):
    """Ends a build. The message is the last problem's."""


@dataclass(frozen=True)
class Request:
    """What to read: the directory of a download, and which split of it."""

    root: Path
    split: str = "train"
    problems: Problems = field(default_factory=Problems)
    detections: Path | None = None
    """Boxes of a detector, for a source that has none of its own."""
    min_score: float = 0.5
    """Least score of a detection."""
    files: list[Path] = field(default_factory=list)
    """What has been read."""

    def find(self, *names: str) -> Path | None:
        """The first of the names that is there, in `root` or in its `annotations`."""
        for name in names:
            for path in (self.root / name, self.root / "annotations" / name):
                if path.exists():
                    self.files.append(path)
                    return path
        return None

    def locate(self, *names: str) -> Path:
        """As `find`. Raises `ValueError` if none is there."""
        path = self.find(*names)
        if not path:
            raise ValueError(f"{self.root}: has no {' nor '.join(names)}; docs/building.md says where it comes from")
        return path

    def load(self, *names: str) -> tuple[Path, Any]:
        """Path and content of a JSON file, the first of the names."""
        path = self.locate(*names)
        return path, load_json(path)

    def items(self, name: str) -> Iterator[Any]:
        """The items of a JSON file that is a list; what is not an object is a problem."""
        path, values = self.load(name)
        yield from check_items(path, values, self.problems)


def load_json(path: Path) -> Any:
    """Content of a JSON file. Raises `ValueError` naming the line that is none."""
    try:
        with path.open(encoding="utf-8") as file:
            return json.load(file)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error


def check_items(path: Path, values: Any, problems: Problems, where: str = "") -> Iterator[dict]:
    """The objects in a JSON list."""
    if not isinstance(values, list):
        raise ValueError(f"{path}: {where or 'the file'} must be a list, got {type(values).__name__}")
    for i, value in enumerate(values):
        if isinstance(value, dict):
            yield value
        else:
            problems.note(f"{path}: {where}[{i}]: must be an object, got {value!r}")
