"""What goes wrong, as OpenAI's clients know it: an HTTP status and a body that says what to do."""

from __future__ import annotations

import re
from typing import TypedDict

import grpc

_STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: (400, "invalid_request_error"),
    grpc.StatusCode.UNAUTHENTICATED: (401, "authentication_error"),
    grpc.StatusCode.PERMISSION_DENIED: (403, "permission_error"),
    grpc.StatusCode.NOT_FOUND: (404, "invalid_request_error"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (429, "rate_limit_error"),
    grpc.StatusCode.UNAVAILABLE: (503, "server_error"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (504, "server_error"),
}
# What is called otherwise here than in the message.
_PARAMETERS = {
    "body": None,
    "question": "messages",
    "history": "messages",
    "image": "messages",
    "image_id": "messages",
    "image_url": "messages",
    "max_new_tokens": "max_completion_tokens",
}


class Error(TypedDict):
    """What went wrong, and what to do."""

    message: str
    type: str
    param: str | None
    """The field of the request that is wrong."""
    code: str | None
    """gRPC's name for it, in small letters."""


class ErrorBody(TypedDict):
    """What answers a request that failed, and ends a stream that fails."""

    error: Error


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> ErrorBody:
    """A failure in OpenAI's form."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_from_status(code: grpc.StatusCode, message: str) -> tuple[int, ErrorBody]:
    """A failure of `FerretService` as an HTTP status and its body."""
    status, kind = _STATUSES.get(code, (500, "server_error"))
    message = message[:1000]  # it may quote what was sent
    message = message.replace("max_new_tokens", "max_completion_tokens").replace("image_bytes", "it as a data URL")
    field = re.match(r"((\w+)[\w.\[\]]*): ", message) if status in (400, 404) else None
    param = _PARAMETERS.get(field[2], field[1]) if field else None
    return status, error_body(message, kind, param, code.name.lower())
