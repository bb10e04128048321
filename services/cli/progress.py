"""How a command that takes its time says what it is about."""

from __future__ import annotations

import time
from collections.abc import Callable

import typer


def progress() -> Callable[[str], None]:
    """Tells lines, each with the time since this call."""
    started = time.monotonic()
    return lambda line: typer.echo(f"[{time.monotonic() - started:5.1f} s] {line}", err=True)
