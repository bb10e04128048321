"""What Pydantic finds wrong with settings, as people are told it: a line for each, with what to change and what it may be."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

_LONGEST = 80  # characters of a value that is shown


def problems(error: ValidationError, model: type[BaseModel], given: Any, origin: str = "") -> str:
    """Of settings.

    Args:
        error: of validating them.
        model: what they should have been.
        given: the values of a file. Others come from FERRET_ variables, or from who calls.
        origin: of that file, to go before its keys.
    """
    return "\n".join(_line(found, model, given, origin) for found in error.errors(include_url=False))


def _line(found: Any, model: type[BaseModel], given: Any, origin: str) -> str:
    path: Sequence[str | int] = found["loc"]
    reason = _reason(found, model)
    if not path:  # of several settings together
        return f"{origin}{reason}"
    variable = f"FERRET_{path[-1]}".upper()
    if variable in os.environ and not _has(given, path):
        return f"{variable}: {reason}"
    return f"{origin if _has(given, path[:1]) else ''}{'.'.join(map(str, path))}: {reason}"


def _reason(found: Any, model: type[BaseModel]) -> str:
    match found["type"]:
        case "value_error":  # ours: it says all
            return str(found["ctx"]["error"])
        case "missing":
            return "must be given"
        case "extra_forbidden":
            known = ", ".join(_names(model, found["loc"][:-1]))
            return f"no such setting{f'; there are {known}' if known else ''}"
    reason, value = found["msg"].replace("Input should", "must"), repr(found["input"])
    shown = isinstance(found["input"], (str, int, float)) and len(value) <= _LONGEST
    return f"{reason}, got {value}" if shown else reason


def _has(values: Any, path: Sequence[str | int]) -> bool:
    for name in path:
        try:
            values = values[name]
        except (KeyError, IndexError, TypeError):
            return False
    return True


def _names(model: Any, path: Sequence[str | int]) -> list[str]:
    """Of the fields of what is at a path within a model."""
    for name in path:
        if fields := getattr(model, "model_fields", None):
            model = fields[name].annotation if name in fields else None
        else:  # of list[Model] or dict[str, Model]
            model = (get_args(model) or [None])[-1]
    return list(getattr(model, "model_fields", ()))
