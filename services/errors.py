"""What goes wrong, as gRPC statuses that say what to do. No traceback crosses the wire."""

from __future__ import annotations

import functools
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

logger = logging.getLogger("ray.serve")

Message = TypeVar("Message")


class NotFoundError(LookupError):
    """The client named something that does not exist."""


def status_of(error: BaseException) -> tuple[grpc.StatusCode, str]:
    """The status and the message for the client."""
    match error:
        case NotFoundError():
            return grpc.StatusCode.NOT_FOUND, str(error)
        case ValueError():
            return grpc.StatusCode.INVALID_ARGUMENT, str(error)
        case BackPressureError():
            return grpc.StatusCode.RESOURCE_EXHAUSTED, "the platform is busy; try again in a few seconds"
        case ActorDiedError() | ActorUnavailableError() | DeploymentUnavailableError():
            return grpc.StatusCode.UNAVAILABLE, "a replica went away; try again"
        case TimeoutError():
            return grpc.StatusCode.DEADLINE_EXCEEDED, "the answer took longer than the deadline"
    incident = uuid.uuid4().hex[:12]
    logger.error("incident %s", incident, exc_info=error)
    return grpc.StatusCode.INTERNAL, f"internal error; the server's log has it as incident {incident}"


class CallAbortedError(Exception):
    """Ends a call whose status is already set on its context: Serve sends a status only if something is raised."""


def unary(method: Callable[..., Awaitable[Message]]) -> Callable[..., Awaitable[Message]]:
    """Wraps `method(self, request, grpc_context)` so that every failure has a status."""

    @functools.wraps(method)
    async def wrapped(self: Any, request: Any, grpc_context: Any) -> Message:
        try:
            return await method(self, request, grpc_context)
        except Exception as error:
            raise _report(error, grpc_context) from None

    return wrapped


def streaming(method: Callable[..., AsyncIterator[Message]]) -> Callable[..., AsyncIterator[Message]]:
    """Wraps the async generator `method(self, request, grpc_context)` so that every failure has a status."""

    @functools.wraps(method)
    async def wrapped(self: Any, request: Any, grpc_context: Any) -> AsyncIterator[Message]:
        try:
            async for message in method(self, request, grpc_context):
                yield message
        except Exception as error:
            raise _report(error, grpc_context) from None

    return wrapped


def _report(error: Exception, grpc_context: Any) -> CallAbortedError:
    code, details = status_of(error)
    grpc_context.set_code(code)
    grpc_context.set_details(details)
    return CallAbortedError(details)
