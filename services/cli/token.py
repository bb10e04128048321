"""`ferret token create`, `ferret token list`, `ferret token revoke`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer
from pydantic import ValidationError

from ferret_core.disk import ferret_home
from services.access import Limit, Scope, create_token, list_tokens, revoke_token
from services.problems import problems

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke the tokens that let clients in.")

File = Annotated[
    Path,
    typer.Option(
        help="The file they stand in, and the platform finds them by.",
        envvar="FERRET_TOKENS_FILE",
        default_factory=lambda: ferret_home() / "tokens.yaml",
        show_default="tokens.yaml in FERRET_HOME",
    ),
]
Name = Annotated[str, typer.Option(help="Whose it is: letters, digits, any of . @ - _")]


@app.command()
def create(
    name: Name,
    file: File,
    scopes: Annotated[str, typer.Option(help=f"What it allows: any of {', '.join(get_args(Scope))}.")] = "ask,feedback",
    rate: Annotated[float, typer.Option(help="Calls a minute, in the long run.")] = Limit().rate,
    burst: Annotated[int, typer.Option(help="Calls at once, after a rest.")] = Limit().burst,
    concurrent: Annotated[int, typer.Option(help="Calls at a time.")] = Limit().concurrent,
) -> None:
    """Make a token and print it: this once, for it is kept nowhere.

    Example: ferret token create --name web --scopes ask,feedback --rate 60
    """
    chosen = tuple(scope for scope in get_args(Scope) if scope in scopes.split(","))
    if unknown := set(scopes.split(",")) - set(chosen):
        raise ValueError(f"--scopes: no scope {', '.join(map(repr, sorted(unknown)))}; there are {', '.join(get_args(Scope))}")
    limits = {"rate": rate, "burst": burst, "concurrent": concurrent}
    try:
        limit = Limit.model_validate(limits)
    except ValidationError as error:
        raise ValueError(problems(error, Limit, limits, "--")) from None
    typer.echo(create_token(file, name, chosen, limit))
    typer.echo(f"added to {file}; a platform with FERRET_TOKENS_FILE={file} lets it in at once", err=True)


@app.command("list")
def list_(file: File) -> None:
    """List the tokens, by name."""
    for token in list_tokens(file):
        limits = f"{token.rate:g} a minute, {token.burst} at once, {token.concurrent} at a time"
        typer.echo(f"{token.name:24} {','.join(token.scopes):20} {limits}")


@app.command()
def revoke(name: Name, file: File) -> None:
    """Take a token's rights away, at once."""
    revoke_token(file, name)
    typer.echo(f"revoked {name}", err=True)
