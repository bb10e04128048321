"""The command line: `ferret COMMAND`.

Commands of other packages join through the entry-point group `ferret.commands`, so that this one need not know them.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from importlib.metadata import entry_points

import typer

from ferret_core.cli import ask, benchmarks, checkpoint, data, train

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Point at anything in a picture, ask, and get an answer with boxes.",
)
app.command("ask")(ask.ask)
app.command("train", epilog=train.settings_help())(train.train)
app.add_typer(data.app, name="data")
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(benchmarks.app, name="eval")


def main() -> None:
    """Runs the command line. An error is one line on standard error; FERRET_TRACEBACK=1 shows where it came from."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    for entry in entry_points(group="ferret.commands"):
        try:
            command = entry.load()
            if isinstance(command, typer.Typer):
                app.add_typer(command, name=entry.name)
            else:
                app.command(entry.name)(command)
        except ModuleNotFoundError as error:
            app.command(entry.name)(_missing(entry.name, str(error.name)))
    try:
        app()
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("FERRET_TRACEBACK"):
            raise
        print(f"ferret: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def _missing(name: str, module: str) -> Callable[[], None]:
    def command() -> None:
        raise RuntimeError(f"`ferret {name}` needs {module}: pip install 'ferret-platform[serve,ui]'")

    command.__doc__ = f"(Not installed: needs {module}.)"
    return command
