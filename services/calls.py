"""What every RPC of the gateway has around it: it is admitted, counted and timed, and every failure has a status."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, TypeVar

import grpc

from services.metrics import CALL_SECONDS, CALLS
from services.status_codes import retry_after, status_of

logger = logging.getLogger("ray.serve")

Message = TypeVar("Message")


class CallAbortedError(Exception):
    """Ends a call whose status is already set on its context: Serve sends a status only if something is raised."""

    def __init__(self, details: str, code: grpc.StatusCode = grpc.StatusCode.UNKNOWN) -> None:
        super().__init__(details)  # and nothing else: it is pickled on its way to Serve's proxy
        self.code = code


def unary(method: Callable[..., Awaitable[Message]]) -> Callable[..., Awaitable[Message]]:
    """Wraps `method(self, request, grpc_context)`; `self.access` admits the call."""

    @functools.wraps(method)
    async def wrapped(self: Any, request: Any, grpc_context: Any) -> Message:
        with _call(method.__name__, grpc_context):
            async with self.access.admit_call(method.__name__, grpc_context):
                return await method(self, request, grpc_context)

    return wrapped


def streaming(method: Callable[..., AsyncGenerator[Message]]) -> Callable[..., AsyncGenerator[Message]]:
    """As `unary`, for an async generator."""

    @functools.wraps(method)
    async def wrapped(self: Any, request: Any, grpc_context: Any) -> AsyncGenerator[Message]:
        with _call(method.__name__, grpc_context):
            async with (
                self.access.admit_call(method.__name__, grpc_context),
                aclosing(method(self, request, grpc_context)) as messages,  # it must not outlive its place
            ):
                async for message in messages:
                    yield message

    return wrapped


@contextmanager
def _call(method: str, grpc_context: Any) -> Iterator[None]:
    started, code = time.monotonic(), grpc.StatusCode.OK
    try:
        yield
    except CallAbortedError as error:
        code = error.code
        raise
    except Exception as error:
        aborted = _abort(error, grpc_context)
        code = aborted.code
        raise aborted from None
    except BaseException:  # the client went away
        code = grpc.StatusCode.CANCELLED
        raise
    finally:
        seconds = time.monotonic() - started
        CALLS.inc(tags={"method": method, "code": code.name})
        CALL_SECONDS.observe(seconds, tags={"method": method})
        logger.info("%s %s %.1f ms", method, code.name, 1000 * seconds)


def _abort(error: Exception, grpc_context: Any) -> CallAbortedError:
    code, details = status_of(error)
    grpc_context.set_code(code)
    grpc_context.set_details(details)
    if seconds := retry_after(error):
        grpc_context.set_trailing_metadata([("retry-after", str(seconds))])
    return CallAbortedError(details, code)
