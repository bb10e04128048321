"""Clients that leave while Serve's proxy waits for them to read.

Ray 2.60's proxy passes it on only if it waits for the gateway just then: `ProxyResponseGenerator` catches the cancellation
where it awaits the next message, and nowhere else. An answer whose client had stopped reading before it left would be
written to its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import Any


def ending_with_client(handler: Callable[[Any, Any], AsyncGenerator[bytes]]) -> Callable[[Any, Any], Awaitable[None]]:
    """Serve's handler of a streaming RPC, which learns wherever it is that the client is gone."""

    async def handle(request: Any, context: Any) -> None:
        messages = handler(request, context)
        try:
            async for message in messages:
                await context.write(message)
        except BaseException:
            waiting = asyncio.ensure_future(anext(messages))
            asyncio.get_running_loop().call_soon(waiting.cancel)  # as soon as it waits for the gateway
            while not waiting.done():  # whatever comes: Serve still asks gRPC about the call, which must not be gone
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([waiting])
            waiting.cancelled() or waiting.exception()  # nobody wants to know
            raise

    return handle
