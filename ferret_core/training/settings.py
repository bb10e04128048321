"""Settings as frozen dataclasses: read from YAML, overridden by KEY=VALUE, explained by the docstring under each field.

    from_values(TrainConfig, read_values("run.yaml", ["optimizer.learning_rate=1e-4"]))

A field is a bool, int, float or str, which may be `| None`; a `Literal`; a tuple of one kind; or a group, another dataclass.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

_T = TypeVar("_T")


def read_values(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Plain values of a YAML file, with those of KEY=VALUE in their place; `a.b=1` is `b` of the group `a`.

    Raises `ValueError`: not YAML, not a mapping, or an override that is none.
    """
    values = _read_yaml(Path(path).read_text(), str(path)) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: must be a mapping of settings")
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise ValueError(f"{override!r}: write KEY=VALUE")
        *groups, name = key.split(".")
        inner = values
        for group in groups:
            inner = inner.setdefault(group, {})
            if not isinstance(inner, dict):
                raise ValueError(f"{key}: {group} has no parts")
        inner[name] = _read_yaml(value, override)
    return values


def _read_yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: is not YAML: {' '.join(str(error).split())}") from error


def from_values(cls: type[_T], values: dict[str, Any], prefix: str = "") -> _T:
    """A configuration from plain values. Raises `ValueError` naming the key that is unknown or of the wrong type."""
    types = get_type_hints(cls)
    if not isinstance(values, dict):
        raise ValueError(f"{prefix.rstrip('.') or 'the file'}: must be a mapping, got {values!r}")
    for key in values:
        if key not in types:
            raise ValueError(f"{prefix}{key}: no such setting; known: {', '.join(types)}")
    required = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]  # type: ignore[arg-type]
    for key in required:
        if key not in values:
            raise ValueError(f"{prefix}{key}: is missing")
    return cls(**{key: _convert(types[key], value, f"{prefix}{key}") for key, value in values.items()})


def _convert(kind: Any, value: Any, key: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return from_values(kind, value, f"{key}.")  # type: ignore[arg-type]
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{key}: must be one of {', '.join(map(str, get_args(kind)))}, got {value!r}")
        return value
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{key}: must be a list, got {value!r}")
        return tuple(_convert(get_args(kind)[0], each, f"{key}[{i}]") for i, each in enumerate(value))
    if isinstance(kind, UnionType):
        if value is None:
            return None
        (kind,) = (each for each in get_args(kind) if each is not NoneType)
    try:
        if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
            value = float(value)  # YAML reads 3e-4 as text
    except ValueError:
        pass
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{key}: must be {kind.__name__}, got {value!r}")
    return value


def describe_fields(cls: type, prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """Every field, and every field of a group, as (dotted key, help, default), in order."""
    helps = _field_docs(cls)
    types = get_type_hints(cls)
    for each in dataclasses.fields(cls):
        if dataclasses.is_dataclass(types[each.name]):
            yield from describe_fields(types[each.name], f"{prefix}{each.name}.")
        else:
            default = None if each.default is dataclasses.MISSING else each.default
            yield f"{prefix}{each.name}", helps.get(each.name, ""), default


@cache
def _field_docs(cls: type) -> dict[str, str]:
    """The docstring under each field of a dataclass."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    docs = {}
    for node, after in zip(body.body, body.body[1:], strict=False):  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            docs[node.target.id] = " ".join(str(after.value.value).split())  # type: ignore[union-attr]
    return docs
