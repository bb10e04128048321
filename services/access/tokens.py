"""Tokens that let clients in: a YAML file with a name, a hash, scopes and limits of each.

    tokens:
    - name: web
      sha256: 3d5f...
      scopes: [ask, feedback]
      rate: 60
      burst: 20
      concurrent: 8

A token itself is 32 random bytes, shown once when it is made, and stands nowhere: a plain hash of so much chance needs no salt.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import logging
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from ferret_core.disk import written_whole
from services.access.limits import Limit
from services.settings import Settings

logger = logging.getLogger("ray.serve")

Scope = Literal["ask", "feedback", "delete"]
"""What a token allows: images, questions and conversations; ratings; removing what is kept."""

_PREFIX = "ferret_"  # so that people, and scanners for secrets, see what it is


class Token(Limit):
    """What is known of a token, its limits among it."""

    name: str = Field(pattern=r"^[\w.@-]{1,64}$")
    """Of its holder, for limits and for `ferret token revoke`."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Of the token, in hexadecimal."""
    scopes: tuple[Scope, ...]
    """What it allows."""


class _Tokens(Settings):
    """The file."""

    tokens: tuple[Token, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for field in ("name", "sha256"):
            values = [getattr(token, field) for token in self.tokens]
            for value in values:
                if values.count(value) > 1:
                    raise ValueError(f"two tokens have the {field} {value}")
        return self


class TokenFile:
    """The tokens in a file, read again when it changes. A change that cannot be read is logged; the tokens before it hold."""

    def __init__(self, path: str | Path) -> None:
        """Raises `ValueError` if there is no such file, or it does not hold tokens."""
        self.path = Path(path)
        self._version = self._stat()
        self._tokens = _read(self.path)

    def find(self, secret: str) -> Token | None:
        """What is known of a token; None if nothing is. Takes as long, whatever the file holds."""
        self._refresh()
        digest, found = _digest(secret), None
        for token in self._tokens:
            if hmac.compare_digest(token.sha256, digest):
                found = token
        return found

    def _refresh(self) -> None:
        if (version := self._stat()) != self._version:
            self._version = version
            try:
                self._tokens = _read(self.path)
            except ValueError as error:
                logger.error("the tokens before the last change hold: %s", error)

    def _stat(self) -> tuple[int, ...] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


def list_tokens(path: Path) -> tuple[Token, ...]:
    """The tokens of a file; none if there is no file. Raises `ValueError` if it does not hold tokens."""
    return _read(path) if path.exists() else ()


def create_token(path: Path, name: str, scopes: tuple[Scope, ...], limit: Limit) -> str:
    """Makes a token, adds what is known of it to a file, and returns the token. Raises `ValueError` if the name is taken."""
    secret = _PREFIX + secrets.token_urlsafe(32)
    with _editing(path) as tokens:
        if any(token.name == name for token in tokens):
            raise ValueError(f"--name {name}: {path} has a token of that name; revoke it first, or choose another")
        try:
            tokens.append(Token(name=name, sha256=_digest(secret), scopes=scopes, **limit.model_dump()))
        except ValidationError as error:
            raise ValueError(f"--name {name}: use 1 to 64 letters, digits or any of . @ - _") from error
    return secret


def revoke_token(path: Path, name: str) -> None:
    """Takes a token out of a file. Raises `ValueError` if it is not there."""
    with _editing(path) as tokens:
        for token in tokens:
            if token.name == name:
                tokens.remove(token)
                return
        raise ValueError(f"{path} has no token named {name!r}; see `ferret token list`")


@contextmanager
def _editing(path: Path) -> Iterator[list[Token]]:
    """The tokens of a file, written back at the end, one writer at a time; readers see the file before or after."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        tokens = list(list_tokens(path))
        yield tokens
        text = yaml.safe_dump(
            {"tokens": [{"name": token.name} | token.model_dump(mode="json") for token in tokens]}, sort_keys=False
        )
        with written_whole(path) as file:
            os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o600)
            file.write(text.encode())


def _read(path: Path) -> tuple[Token, ...]:
    try:
        return _Tokens.model_validate(yaml.safe_load(path.read_text()) or {}).tokens
    except FileNotFoundError:
        raise ValueError(f"tokens_file: no such file: {path}; make it with `ferret token create`") from None
    except ValidationError as error:
        # Unlike `problems` without the values: one may be a token that somebody took for its hash.
        found = (f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}".lstrip(": ") for problem in error.errors())
        raise ValueError(f"tokens_file: {path}: {'; '.join(found)}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"tokens_file: {path}: {error}") from error


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()
