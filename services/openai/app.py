"""The HTTP side of the gateway: OpenAI's paths, each a call of a method of `FerretService` in the same process.

A call goes the way that gRPC's go, so whatever is checked, counted or refused there is so here.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc
from ferret.v1 import ferret_pb2 as pb
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from services.calls import CallAbortedError, streaming
from services.errors import InvalidRequestError, NotFoundError
from services.openai.answers import ChunkStream, completion_from_proto, models_from_proto
from services.openai.errors import error_body, error_from_status
from services.openai.requests import ChatCompletionRequest, parse_request, request_to_proto
from services.settings import RETRY_SECONDS
from services.status_codes import status_of

if TYPE_CHECKING:
    from services.gateway import Gateway

_ROOM = 8 * 2**20  # bytes of a body around its image: masks and words
_CLIENT_CLOSED_REQUEST = 499  # nginx's; nobody is there to see it


class HTTPContext:
    """What stands for gRPC's context in a call that came over HTTP."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.code, self.details = grpc.StatusCode.UNKNOWN, ""
        self.headers: dict[str, str] = {}
        """To go with the answer."""

    def invocation_metadata(self) -> list[tuple[str, str]]:
        """The headers, their names in small letters."""
        return self.request.headers.items()

    def peer(self) -> str:
        """Who calls, as gRPC writes it: `ipv4:127.0.0.1:5000`."""
        if not (client := self.request.client):
            return "unknown"
        return f"ipv6:[{client.host}]:{client.port}" if ":" in client.host else f"ipv4:{client.host}:{client.port}"

    def auth_context(self) -> dict[str, list[bytes]]:
        """Whether the call came over TLS, as gRPC says it."""
        return {"transport_security_type": [b"ssl"]} if self.request.url.scheme == "https" else {}

    def set_code(self, code: grpc.StatusCode) -> None:
        """Of the failure that is about to be raised."""
        self.code = code

    def set_details(self, details: str) -> None:
        """What to tell the client of it."""
        self.details = details

    def set_trailing_metadata(self, metadata: Iterable[tuple[str, str]]) -> None:
        """What else to tell: over HTTP before the answer, so only if there is none yet."""
        self.headers.update(metadata)


class BodyError(CallAbortedError):
    """Ends a call whose request could not be read, with a status that gRPC has not."""

    def __init__(self, status: int, details: str, code: grpc.StatusCode) -> None:
        super().__init__(details, code)
        self.status = status


def openai_app(gateway: Gateway) -> Starlette:
    """Serves `/v1/chat/completions` and `/v1/models` from a gateway."""
    endpoints = _Endpoints(gateway)
    return Starlette(
        routes=[
            Route("/v1/chat/completions", endpoints.create_chat_completion, methods=["POST"]),
            Route("/v1/models", endpoints.list_models),
            Route("/v1/models/{name:path}", endpoints.retrieve_model),
        ],
        exception_handlers={HTTPException: _not_served},
    )


Endpoint = Callable[[Any, Request, HTTPContext], Awaitable[Response]]


def _answered(endpoint: Endpoint) -> Callable[[Any, Request], Awaitable[Response]]:
    """Gives an endpoint a context, and its failures a status and a body."""

    @functools.wraps(endpoint)
    async def wrapped(self: Any, request: Request) -> Response:
        context = HTTPContext(request)
        try:
            return await endpoint(self, request, context)
        except BodyError as error:
            return JSONResponse(error_body(str(error), "invalid_request_error"), error.status)
        except CallAbortedError:
            pass
        except Exception as error:
            context.code, context.details = status_of(error)
        status, body = error_from_status(context.code, context.details)
        if status in (429, 503):
            context.headers.setdefault("retry-after", str(RETRY_SECONDS))
        return JSONResponse(body, status, context.headers)

    return wrapped


class _Endpoints:
    def __init__(self, gateway: Gateway) -> None:
        self.gateway, self.access = gateway, gateway.access
        self.max_bytes = gateway.settings.max_image_bytes * 4 // 3 + _ROOM  # an image in base64

    @_answered
    async def create_chat_completion(self, request: Request, context: HTTPContext) -> Response:
        responses = self.Chat(request, context)
        asked, model = await anext(responses)
        if not asked.stream:
            return JSONResponse(completion_from_proto([response async for response in responses]))
        first = await anext(responses)  # what is wrong with the request has a status of its own: it is known by now
        stream = ChunkStream(model, asked.stream_options.include_usage)
        events = _events(stream, first, responses, context)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    @streaming
    async def Chat(self, request: Request, context: HTTPContext) -> AsyncGenerator[Any]:  # noqa: N802 (the RPC's name)
        """What is asked and of which model, then the gateway's answer: one call, let in before anything of it is read."""
        asked, chat = await asyncio.to_thread(_read, await self._body(request))
        chat.model = chat.model or next(iter(self.gateway.models))
        yield asked, chat.model
        # Without what is around an RPC: that is around this.
        async with aclosing(inspect.unwrap(self.gateway.Chat)(self.gateway, chat, context)) as responses:
            async for response in responses:
                yield response

    @_answered
    async def list_models(self, request: Request, context: HTTPContext) -> Response:
        return JSONResponse(models_from_proto(await self.gateway.ListModels(pb.ListModelsRequest(), context)))

    @_answered
    async def retrieve_model(self, request: Request, context: HTTPContext) -> Response:
        models = models_from_proto(await self.gateway.ListModels(pb.ListModelsRequest(), context))["data"]
        for model in models:
            if model["id"] == request.path_params["name"]:
                return JSONResponse(model)
        known = ", ".join(model["id"] for model in models)
        raise NotFoundError(f"model: no model {request.path_params['name']!r}; there are {known}")

    async def _body(self, request: Request) -> bytes:
        # Any web page may have a browser post text to a port of its machine; JSON it may not, unless it is allowed to.
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise BodyError(415, "Content-Type: must be application/json", grpc.StatusCode.INVALID_ARGUMENT)
        body = bytearray()
        try:
            async for piece in request.stream():
                body += piece
                if len(body) > self.max_bytes:
                    says = f"body: at most {self.max_bytes:,} bytes are accepted"
                    raise BodyError(413, says, grpc.StatusCode.INVALID_ARGUMENT)
        except ClientDisconnect:
            raise BodyError(_CLIENT_CLOSED_REQUEST, "the client went away", grpc.StatusCode.CANCELLED) from None
        return bytes(body)


def _read(body: bytes) -> tuple[ChatCompletionRequest, pb.ChatRequest]:
    try:
        asked = parse_request(body)
        return asked, request_to_proto(asked)
    except ValueError as error:
        raise InvalidRequestError(str(error)) from error


async def _events(
    stream: ChunkStream, first: pb.ChatResponse, responses: AsyncGenerator[pb.ChatResponse, None], context: HTTPContext
) -> AsyncIterator[str]:
    """An answer as server-sent events. Closing it cancels the answer."""
    async with aclosing(responses):
        yield _event(stream.begin())
        try:
            for chunk in stream.feed(first):
                yield _event(chunk)
            async for response in responses:
                for chunk in stream.feed(response):
                    yield _event(chunk)
            yield "data: [DONE]\n\n"
        except CallAbortedError:
            yield _event(error_from_status(context.code, context.details)[1])


def _event(data: Mapping[str, Any]) -> str:
    # Escaped beyond ASCII: not every client knows that a line ends nowhere else.
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"


async def _not_served(request: Request, error: Exception) -> Response:
    """What never came to be a call."""
    assert isinstance(error, HTTPException)
    message = error.detail
    if error.status_code in (404, 405):
        message = f"no {request.method} {request.url.path}; there are POST /v1/chat/completions and GET /v1/models"
    return JSONResponse(error_body(message, "invalid_request_error"), error.status_code, error.headers)
