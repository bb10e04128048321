"""The Python SDK: ask a running platform exactly as one asks a `FerretPredictor` in the same process.

    with FerretClient("localhost:9000") as ferret:
        ferret.set_image("scene.png")
        answer = ferret.ask("What is [region0]?", regions=[Point(120, 80)])
        conversation = ferret.create_conversation()  # kept by the platform: nothing of it need be sent again
        answer = ferret.ask("What is [region0]?", [Point(120, 80)], conversation_id=conversation.id)

`AsyncFerretClient` is the same with `await` and `async for`. Failures are `ServerError`s; those that the caller can mend
are also what the predictor raises: `ValueError` for a bad request, `LookupError` for something unknown. What can be asked
twice is asked again, for some seconds, while the platform is `UNAVAILABLE`; an answer that has begun is not.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import grpc
from ferret.v1 import ferret_pb2 as pb
from ferret.v1 import regions_pb2
from ferret.v1.ferret_pb2_grpc import FerretServiceStub

from ferret_core.answer import Answer, AnswerEvent
from ferret_core.geometry import ImageSize
from ferret_core.images import ImageSource, image_bytes
from ferret_core.prompt import Regions, Turn, number_regions
from services.conversation import Conversation, Rating
from services.settings import GRPC_PORT
from services.tracing import current_context
from services.wire import (
    RATINGS_TO_PROTO,
    conversation_from_proto,
    event_from_proto,
    image_size,
    region_to_proto,
    sampling_to_proto,
    turn_to_proto,
)

Message = TypeVar("Message")

DEFAULT_SERVER = f"localhost:{GRPC_PORT}"
# Calls that can be made twice. An answer that has begun is not: nobody wants to read its first words again. Nor is ListModels,
# by which `ferret status` and the page find out whether there is a platform: they should say so at once.
_RETRIED = ("Chat", "UploadImage", "GetImage", "GetConversation", "ExportConversation")
_RETRIES = {
    "methodConfig": [
        {
            "name": [{"service": "ferret.v1.FerretService", "method": method} for method in _RETRIED],
            "retryPolicy": {
                "maxAttempts": 5,  # within 7 s, in which a proxy that died is back
                "initialBackoff": "1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_reconnect_backoff_ms", 2000),  # a platform that is back should be found at once
    ("grpc.service_config", json.dumps(_RETRIES)),
    ("grpc.per_rpc_retry_buffer_size", 2**31 - 1),  # a picture is kept anyway until it is sent
]


class ServerError(RuntimeError):
    """The platform could not answer; `code` is gRPC's, the message says what to do.

    `retry_after` is in seconds, where the platform says when to try again.
    """

    def __init__(self, code: grpc.StatusCode, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.code, self.retry_after = code, retry_after


class InvalidRequestError(ServerError, ValueError):
    """The request names something out of range."""


class NotFoundError(ServerError, LookupError):
    """The image, the conversation or the model does not exist."""


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
        token: str | None = None,
    ) -> None:
        """
        Args:
            server: HOST:PORT.
            model: which of `models()`; the platform's default if empty.
            timeout: seconds that any call may take, a whole answer included; None for no limit.
            credentials: for TLS, as of `tls_credentials()`.
            token: as `ferret token create` made it. Without TLS everyone on the way can read it.
        """
        self.server, self.model, self.timeout = server, model, timeout
        self._token = token
        self._channel = (
            self._transport.secure_channel(server, credentials, _OPTIONS)
            if credentials
            else self._transport.insecure_channel(server, _OPTIONS)
        )
        self._stub: Any = FerretServiceStub(self._channel)
        self._image_id: str | None = None

    @classmethod
    def connect(
        cls,
        server: str,
        model: str = "",
        token: str | None = None,
        tls: bool = False,
        ca: Path | None = None,
        certificate: Path | None = None,
        key: Path | None = None,
        timeout: float | None = 300.0,
    ) -> Self:
        """A client as the command line describes it; files mean TLS. Raises as `tls_credentials`."""
        credentials = tls_credentials(ca, certificate, key) if tls or ca or certificate or key else None
        return cls(server, model, timeout, credentials, token=(token or "").strip() or None)

    def _call_options(self) -> dict[str, Any]:
        authorization = {"authorization": f"Bearer {self._token}"} if self._token else {}
        return {"timeout": self.timeout, "metadata": list({**authorization, **current_context()}.items())}

    def _upload_request(self, image: ImageSource) -> pb.UploadImageRequest:
        self._image_id = None  # a failure must not leave the picture before
        return pb.UploadImageRequest(image_bytes=image_bytes(image))

    def _fetch_request(self, url: str) -> pb.UploadImageRequest:
        self._image_id = None
        return pb.UploadImageRequest(image_url=url)

    def _chat_request(
        self,
        question: str,
        regions: Regions,
        history: Sequence[Turn],
        conversation_id: str | None,
        turn: int | None,
        sampling: dict[str, Any],
    ) -> pb.ChatRequest:
        return pb.ChatRequest(
            model=self.model,
            image_id=self._current_image() if conversation_id is None else None,
            regions=_regions_to_proto(regions),
            history=map(turn_to_proto, history),
            question=question,
            sampling=sampling_to_proto(**sampling),
            conversation_id=conversation_id,
            turn=turn,
        )

    def _create_request(
        self, image: ImageSource | None, regions: Regions, history: Sequence[Turn]
    ) -> pb.CreateConversationRequest:
        return pb.CreateConversationRequest(
            image_bytes=None if image is None else image_bytes(image),
            image_id=self._current_image() if image is None else None,
            regions=_regions_to_proto(regions),
            turns=map(turn_to_proto, history),
        )

    def _rate_request(self, conversation_id: str, turn: int, rating: Rating | None, comment: str) -> pb.RateAnswerRequest:
        value = RATINGS_TO_PROTO[rating]
        return pb.RateAnswerRequest(conversation_id=conversation_id, turn=turn, rating=value, comment=comment)

    def _current_image(self) -> str:
        if self._image_id is None:
            raise RuntimeError("call set_image() first")
        return self._image_id

    def _remember(self, image: pb.ImageInfo) -> ImageSize:
        self._image_id = image.id
        return image_size(image)


class EventStream(Iterator[AnswerEvent]):
    """The events of an answer as they come. `close()` may be called from any thread, and ends the stream in every thread."""

    def __init__(self, call: Any, server: str) -> None:
        self._call, self._server = call, server
        self._closed = False

    def __next__(self) -> AnswerEvent:
        try:
            with _errors(self._server):
                return event_from_proto(next(self._call))
        except ServerError:
            if self._closed:
                raise StopIteration from None
            raise

    def close(self) -> None:
        """Cancels the answer, should it not have ended. So does letting go of the stream."""
        self._closed = True
        self._call.cancel()


class FerretClient(_Client):
    """Talks to a platform over gRPC. `set_image` is its only memory; the rest is safe to use from several threads."""

    _transport: ClassVar[Any] = grpc

    def models(self) -> list[str]:
        """Names of the models that can be asked, the default first."""
        return list(self.revisions())

    def revisions(self) -> dict[str, str]:
        """By model, the default first, a hash of its checkpoint's files; empty if the platform does not tell."""
        return _revisions(self._call(self._stub.ListModels, pb.ListModelsRequest()))

    def set_image(self, image: ImageSource) -> ImageSize:
        """Uploads an image: a path, encoded bytes or a PIL image. Returns its size in pixels."""
        return self._remember(self._call(self._stub.UploadImage, self._upload_request(image)).image)

    def set_image_url(self, url: str) -> ImageSize:
        """As `set_image`, for an image that the platform itself fetches: https://HOST/..., if its settings allow the host."""
        return self._remember(self._call(self._stub.UploadImage, self._fetch_request(url)).image)

    def get_image(self, image_id: str) -> bytes:
        """A stored image, encoded as it was sent."""
        return self._call(self._stub.GetImage, pb.GetImageRequest(image_id=image_id)).image_bytes

    def ask(
        self,
        question: str,
        regions: Regions = (),
        history: Sequence[Turn] = (),
        *,
        conversation_id: str | None = None,
        turn: int | None = None,
        **sampling: Any,
    ) -> Answer:
        """The whole answer; arguments as for `stream`."""
        return Answer.collect(self.stream(question, regions, history, conversation_id=conversation_id, turn=turn, **sampling))

    def stream(
        self,
        question: str,
        regions: Regions = (),
        history: Sequence[Turn] = (),
        *,
        conversation_id: str | None = None,
        turn: int | None = None,
        **sampling: Any,
    ) -> EventStream:
        """The answer as it comes.

        Args:
            question: points at regions with `[region0]`, `[region1]`, ...
            regions: in pixels of the image; a sequence is numbered from 0. Kept with the conversation, if there is one.
            history: earlier turns, oldest first; of a conversation the platform knows them.
            conversation_id: the conversation to ask in, about its image; else the image is that of `set_image()`.
            turn: position of the question in the conversation, in place of the turn there and all after it; at the end by
                default.
            sampling: of `SamplingParams`.
        """
        request = self._chat_request(question, regions, history, conversation_id, turn, sampling)
        return EventStream(self._stub.Chat(request, **self._call_options()), self.server)

    def create_conversation(
        self, image: ImageSource | None = None, regions: Regions = (), history: Sequence[Turn] = ()
    ) -> Conversation:
        """Starts a conversation about an image (that of `set_image()` by default), which the platform keeps.

        `regions` and `history` are what it starts with, such as those of another conversation up to where they part.
        """
        request = self._create_request(image, regions, history)
        return conversation_from_proto(self._call(self._stub.CreateConversation, request).conversation)

    def get_conversation(self, conversation_id: str) -> Conversation:
        """A conversation as it stands."""
        request = pb.GetConversationRequest(conversation_id=conversation_id)
        return conversation_from_proto(self._call(self._stub.GetConversation, request).conversation)

    def rate_answer(self, conversation_id: str, turn: int, rating: Rating | None, comment: str = "") -> None:
        """Says whether the answer at position `turn` of a conversation was good; None withdraws that."""
        self._call(self._stub.RateAnswer, self._rate_request(conversation_id, turn, rating, comment))

    def export_conversation(self, conversation_id: str) -> bytes:
        """All that is kept of a conversation, as a ZIP: conversation.json, its image, ratings.jsonl, answers.jsonl."""
        request = pb.ExportConversationRequest(conversation_id=conversation_id)
        return self._call(self._stub.ExportConversation, request).archive

    def delete_conversation(self, conversation_id: str) -> None:
        """Removes a conversation, its ratings and logged answers, and its image if no other conversation is about it."""
        self._call(self._stub.DeleteConversation, pb.DeleteConversationRequest(conversation_id=conversation_id))

    def _call(self, method: Callable[..., Message], request: Any) -> Message:
        with _errors(self.server):
            return method(request, **self._call_options())

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
        """As `FerretClient.models`."""
        return list(await self.revisions())

    async def revisions(self) -> dict[str, str]:
        """As `FerretClient.revisions`."""
        return _revisions(await self._call(self._stub.ListModels, pb.ListModelsRequest()))

    async def set_image(self, image: ImageSource) -> ImageSize:
        """As `FerretClient.set_image`."""
        return self._remember((await self._call(self._stub.UploadImage, self._upload_request(image))).image)

    async def set_image_url(self, url: str) -> ImageSize:
        """As `FerretClient.set_image_url`."""
        return self._remember((await self._call(self._stub.UploadImage, self._fetch_request(url))).image)

    async def get_image(self, image_id: str) -> bytes:
        """As `FerretClient.get_image`."""
        return (await self._call(self._stub.GetImage, pb.GetImageRequest(image_id=image_id))).image_bytes

    async def ask(
        self,
        question: str,
        regions: Regions = (),
        history: Sequence[Turn] = (),
        *,
        conversation_id: str | None = None,
        turn: int | None = None,
        **sampling: Any,
    ) -> Answer:
        """As `FerretClient.ask`."""
        stream = self.stream(question, regions, history, conversation_id=conversation_id, turn=turn, **sampling)
        return Answer.collect([event async for event in stream])

    def stream(
        self,
        question: str,
        regions: Regions = (),
        history: Sequence[Turn] = (),
        *,
        conversation_id: str | None = None,
        turn: int | None = None,
        **sampling: Any,
    ) -> AsyncIterator[AnswerEvent]:
        """As `FerretClient.stream`. Closing the iterator cancels the answer on the server."""
        request = self._chat_request(question, regions, history, conversation_id, turn, sampling)
        return self._events(self._stub.Chat(request, **self._call_options()))

    async def create_conversation(
        self, image: ImageSource | None = None, regions: Regions = (), history: Sequence[Turn] = ()
    ) -> Conversation:
        """As `FerretClient.create_conversation`."""
        request = self._create_request(image, regions, history)
        return conversation_from_proto((await self._call(self._stub.CreateConversation, request)).conversation)

    async def get_conversation(self, conversation_id: str) -> Conversation:
        """As `FerretClient.get_conversation`."""
        request = pb.GetConversationRequest(conversation_id=conversation_id)
        return conversation_from_proto((await self._call(self._stub.GetConversation, request)).conversation)

    async def rate_answer(self, conversation_id: str, turn: int, rating: Rating | None, comment: str = "") -> None:
        """As `FerretClient.rate_answer`."""
        await self._call(self._stub.RateAnswer, self._rate_request(conversation_id, turn, rating, comment))

    async def export_conversation(self, conversation_id: str) -> bytes:
        """As `FerretClient.export_conversation`."""
        request = pb.ExportConversationRequest(conversation_id=conversation_id)
        return (await self._call(self._stub.ExportConversation, request)).archive

    async def delete_conversation(self, conversation_id: str) -> None:
        """As `FerretClient.delete_conversation`."""
        await self._call(self._stub.DeleteConversation, pb.DeleteConversationRequest(conversation_id=conversation_id))

    async def _call(self, method: Callable[..., Awaitable[Message]], request: Any) -> Message:
        with _errors(self.server):
            return await method(request, **self._call_options())

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


def tls_credentials(
    ca: Path | None = None, certificate: Path | None = None, key: Path | None = None
) -> grpc.ChannelCredentials:
    """For a platform, or a proxy in front of it, that speaks TLS. All are PEM files.

    Args:
        ca: of the authority to trust; by default those that gRPC knows.
        certificate: the client's own, for a server that asks for one.
        key: of that certificate.

    Raises:
        ValueError: a certificate without its key, or a key without its certificate.
        OSError: a file cannot be read.
    """
    if (certificate is None) != (key is None):
        raise ValueError("a client's certificate and its key go together (--tls-cert and --tls-key)")
    return grpc.ssl_channel_credentials(*(path.read_bytes() if path else None for path in (ca, key, certificate)))


connect = FerretClient.connect
"""For the command line."""


def _revisions(response: pb.ListModelsResponse) -> dict[str, str]:
    return {model.name: model.revision for model in response.models}


def _regions_to_proto(regions: Regions) -> dict[int, regions_pb2.Region]:
    return {number: region_to_proto(region) for number, region in number_regions(regions).items()}


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
            case grpc.StatusCode.CANCELLED:  # not by us: somebody who serves stops
                raise ServerError(grpc.StatusCode.UNAVAILABLE, f"{server} ended the call; try again") from None
            case grpc.StatusCode.UNAVAILABLE if "failed to connect" in details.lower():
                raise ServerError(code, f"no platform answers at {server}; start one with `ferret up`") from None
            case grpc.StatusCode.UNAVAILABLE if "try again" not in details:
                raise ServerError(code, f"the connection to {server} was lost; try again ({details})") from None
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                raise ServerError(code, "the answer took longer than the client's timeout; try again, or allow more") from None
            case grpc.StatusCode.UNAUTHENTICATED:
                raise ServerError(code, f"{details} (`ferret` reads a token from FERRET_TOKEN)") from None
        seconds = re.search(r"try again in (\d+) s$", details)
        raise ServerError(code, f"{code.name}: {details}", float(seconds[1]) if seconds else None) from None
