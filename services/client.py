"""The Python SDK: ask a running platform exactly as one asks a `FerretPredictor` in the same process.

    with FerretClient("localhost:9000") as ferret:
        ferret.set_image("scene.png")
        answer = ferret.ask("What is [region0]?", regions=[Point(120, 80)])

`AsyncFerretClient` is the same with `await` and `async for`. Failures are `ServerError`s; those that the caller can mend
are also what the predictor raises: `ValueError` for a bad request, `LookupError` for something unknown.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import grpc
from ferret.v1 import ferret_pb2 as pb
from ferret.v1.ferret_pb2_grpc import FerretServiceStub

from ferret_core.answer import Answer, AnswerEvent
from ferret_core.geometry import ImageSize
from ferret_core.images import ImageSource, image_bytes
from ferret_core.prompt import Regions, Turn, number_regions
from services.settings import GRPC_PORT
from services.wire import event_from_proto, region_to_proto, sampling_to_proto

DEFAULT_SERVER = f"localhost:{GRPC_PORT}"
_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class ServerError(RuntimeError):
    """The platform could not answer; `code` is gRPC's, the message says what to do."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class InvalidRequestError(ServerError, ValueError):
    """The request names something out of range."""


class NotFoundError(ServerError, LookupError):
    """The image or model does not exist."""


class _Client:
    """What both clients share: a channel, an image, and how calls become requests."""

    _transport: ClassVar[Any]
    """`grpc` or `grpc.aio`."""

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        model: str = "",
        timeout: float | None = 300.0,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        """
        Args:
            server: HOST:PORT.
            model: which of `models()`; the platform's default if empty.
            timeout: seconds an answer may take.
            credentials: for TLS, as of `grpc.ssl_channel_credentials()`.
        """
        self.server, self.model, self.timeout = server, model, timeout
        self._channel = (
            self._transport.secure_channel(server, credentials, _OPTIONS)
            if credentials
            else self._transport.insecure_channel(server, _OPTIONS)
        )
        self._stub: Any = FerretServiceStub(self._channel)
        self._image_id: str | None = None

    def _upload(self, image: ImageSource) -> pb.UploadImageRequest:
        self._image_id = None  # a failure must not leave the picture before
        return pb.UploadImageRequest(image_bytes=image_bytes(image))

    def _request(self, question: str, regions: Regions, history: Sequence[Turn], sampling: dict[str, Any]) -> pb.ChatRequest:
        if self._image_id is None:
            raise RuntimeError("call set_image() before asking")
        return pb.ChatRequest(
            model=self.model,
            image_id=self._image_id,
            regions={number: region_to_proto(region) for number, region in number_regions(regions).items()},
            history=[pb.Turn(question=turn.question, answer=turn.answer or "") for turn in history],
            question=question,
            sampling=sampling_to_proto(**sampling),
        )

    def _remember(self, image: pb.ImageInfo) -> ImageSize:
        self._image_id = image.id
        return ImageSize(image.width, image.height)


class FerretClient(_Client):
    """Talks to a platform over gRPC. One conversation image at a time; safe to use from one thread."""

    _transport: ClassVar[Any] = grpc

    def models(self) -> list[str]:
        """Names of the models that can be asked, the default first."""
        with _errors(self.server):
            return [model.name for model in self._stub.ListModels(pb.ListModelsRequest(), timeout=self.timeout).models]

    def set_image(self, image: ImageSource) -> ImageSize:
        """Uploads an image: a path, encoded bytes or a PIL image. Returns its size in pixels."""
        request = self._upload(image)
        with _errors(self.server):
            return self._remember(self._stub.UploadImage(request, timeout=self.timeout).image)

    def ask(self, question: str, regions: Regions = (), history: Sequence[Turn] = (), **sampling: Any) -> Answer:
        """The whole answer; arguments as for `FerretPredictor.stream`."""
        return Answer.collect(self.stream(question, regions, history, **sampling))

    def stream(
        self, question: str, regions: Regions = (), history: Sequence[Turn] = (), **sampling: Any
    ) -> Iterator[AnswerEvent]:
        """The answer as it comes. Closing the iterator cancels it on the server."""
        return self._events(self._stub.Chat(self._request(question, regions, history, sampling), timeout=self.timeout))

    def _events(self, call: Any) -> Iterator[AnswerEvent]:
        try:
            with _errors(self.server):
                for message in call:
                    yield event_from_proto(message)
        finally:
            call.cancel()

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncFerretClient(_Client):
    """`FerretClient` for asyncio."""

    _transport: ClassVar[Any] = grpc.aio

    async def models(self) -> list[str]:
        """Names of the models that can be asked, the default first."""
        with _errors(self.server):
            return [model.name for model in (await self._stub.ListModels(pb.ListModelsRequest(), timeout=self.timeout)).models]

    async def set_image(self, image: ImageSource) -> ImageSize:
        """Uploads an image: a path, encoded bytes or a PIL image. Returns its size in pixels."""
        request = self._upload(image)
        with _errors(self.server):
            return self._remember((await self._stub.UploadImage(request, timeout=self.timeout)).image)

    async def ask(self, question: str, regions: Regions = (), history: Sequence[Turn] = (), **sampling: Any) -> Answer:
        """The whole answer; arguments as for `FerretPredictor.stream`."""
        return Answer.collect([event async for event in self.stream(question, regions, history, **sampling)])

    def stream(
        self, question: str, regions: Regions = (), history: Sequence[Turn] = (), **sampling: Any
    ) -> AsyncIterator[AnswerEvent]:
        """The answer as it comes. Closing the iterator cancels it on the server."""
        return self._events(self._stub.Chat(self._request(question, regions, history, sampling), timeout=self.timeout))

    async def _events(self, call: Any) -> AsyncIterator[AnswerEvent]:
        try:
            with _errors(self.server):
                async for message in call:
                    yield event_from_proto(message)
        finally:
            call.cancel()

    async def close(self) -> None:
        """Closes the connection."""
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


@contextmanager
def _errors(server: str) -> Iterator[None]:
    """gRPC's errors as ours."""
    try:
        yield
    except grpc.RpcError as error:
        code, details = error.code(), error.details() or ""
        match code:
            case grpc.StatusCode.INVALID_ARGUMENT:
                raise InvalidRequestError(code, details) from None
            case grpc.StatusCode.NOT_FOUND:
                raise NotFoundError(code, details) from None
            case grpc.StatusCode.UNAVAILABLE if "connect" in details.lower():
                raise ServerError(code, f"no platform answers at {server}; start one with `ferret up`") from None
        raise ServerError(code, f"{code.name}: {details}") from None
