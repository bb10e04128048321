"""Checkpoints that come with the package, by name."""

from pathlib import Path

BUNDLED = {path.name: path for path in Path(__file__).parent.iterdir() if (path / "config.json").is_file()}
"""Name to directory."""

DEFAULT = "playground"


def checkpoint_path(name_or_path: str) -> str:
    """The directory of a bundled checkpoint, or the argument unchanged: a directory, or a name on the hub."""
    return str(BUNDLED.get(name_or_path, name_or_path))
