"""What can go wrong for a client, as exceptions. Their messages reach the client: they name the field, and say what to do.

`status_codes` has what each is over gRPC.
"""

from __future__ import annotations

A_REPLICA_LOST = "a replica went away; try again"
AN_INCIDENT = "internal error"
"""How the message begins that names an entry of the log."""


class InvalidRequestError(ValueError):
    """Something is wrong with a request itself. `RegionError`, `PromptError` and `ImageError` of `ferret_core` say so, too."""


class NotFoundError(LookupError):
    """The client named something that does not exist."""


class UnauthenticatedError(Exception):
    """Nobody knows who calls."""


class ForbiddenError(Exception):
    """Who calls may not do this."""


class LimitError(Exception):
    """A client calls too often; it may again in `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UnavailableError(RuntimeError):
    """Something that the answer needs is away for the moment. The message says so, and to try again."""
