"""The JSON files of a checkpoint: its configuration, the index of its weights, adapters' settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json(file: Path) -> dict[str, Any]:
    """What a file says by name; nothing, if there is no such file.

    Raises:
        ValueError: it is no JSON, or no object.
    """
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # of which undecodable text is one
        raise ValueError(f"{file}: is no JSON ({error}); download it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file}: holds a {type(found).__name__}; must be a JSON object")
    return found
