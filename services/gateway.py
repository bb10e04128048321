"""The Gateway deployment: `ferret.v1.FerretService` to the outside, the three model stages inside.

It checks every request before any model sees it, so that nothing a client sends can reach, let alone kill, a replica
that holds weights.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ferret.v1 import ferret_pb2 as pb
from ferret.v1 import regions_pb2
from ferret.v1.image_encoder_pb2 import EncodeImageRequest
from ferret.v1.llm_decoder_pb2 import DecodeRequest
from ferret.v1.region_sampler_pb2 import EncodeRegionsRequest
from ray.serve.grpc_util import RayServegRPCContext
from ray.serve.handle import DeploymentHandle

from ferret_core.checkpoint.bundled import checkpoint_path
from ferret_core.conversation import AnswerStream, PreparedQuestion, check_regions, prepare_question
from ferret_core.geometry import Region
from ferret_core.grounding import find_spans
from ferret_core.images import open_image
from ferret_core.model import FerretConfig, FerretProcessor
from ferret_core.prompt import check_text, mentioned_regions
from services.errors import NotFoundError, streaming, unary
from services.settings import PlatformSettings
from services.stage_wire import delta_from_proto, sampling_from_proto
from services.stores import ConversationStore, FeedbackLog, ImageStore
from services.wire import (
    RATINGS_FROM_PROTO,
    event_to_proto,
    image_size,
    region_from_proto,
    region_to_proto,
    span_to_proto,
    turn_from_proto,
)


class Model:
    """What the gateway knows of a model, and how it reaches it. Holds no weights."""

    def __init__(self, path: str, encoder: DeploymentHandle, sampler: DeploymentHandle, decoder: DeploymentHandle) -> None:
        self.processor = FerretProcessor.from_pretrained(checkpoint_path(path))
        self.context_length = FerretConfig.from_pretrained(checkpoint_path(path)).context_length
        self.encoder, self.sampler, self.decoder = encoder, sampler, decoder.options(stream=True)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request that was found good."""

    data: bytes
    """The encoded image."""
    image: pb.ImageInfo
    """Its id and size."""
    question: PreparedQuestion
    """What the model reads."""
    turn_id: str = ""
    """Of the turn that keeps the answer; empty outside conversations."""


class Gateway:
    """Answers `FerretService`."""

    def __init__(self, settings: PlatformSettings, stages: Mapping[str, tuple[DeploymentHandle, ...]]) -> None:
        self.settings = settings
        self.models = {name: Model(settings.models[name].path, *handles) for name, handles in stages.items()}
        self.images = ImageStore(settings.image_directory, settings.image_directory_bytes)
        self.conversations = ConversationStore(settings.conversation_directory, settings.conversation_days)
        self.feedback = FeedbackLog(settings.feedback_directory)

    @streaming
    async def Chat(  # noqa: N802 (the RPC's name)
        self, request: pb.ChatRequest, grpc_context: RayServegRPCContext
    ) -> AsyncIterator[pb.ChatResponse]:
        """Answers one question about one image, as it is being written."""
        name = request.model or next(iter(self.models))
        if name not in self.models:
            raise NotFoundError(f"model: no model {name!r}; there are {', '.join(self.models)}")
        model = self.models[name]
        asked = await asyncio.to_thread(self._ask, request, name)

        features = (await model.encoder.EncodeImage.remote(EncodeImageRequest(image_bytes=asked.data))).image_features
        decode = DecodeRequest(input_ids=asked.question.input_ids, image_features=features, sampling=request.sampling)
        if asked.question.regions:
            regions = EncodeRegionsRequest(
                image_features=features,
                image_width=asked.image.width,
                image_height=asked.image.height,
                regions=[region_to_proto(region) for region in asked.question.regions],
            )
            encoded = await model.sampler.EncodeRegions.remote(regions)
            decode.region_features.CopyFrom(encoded.region_features)

        answer = AnswerStream(asked.question, image_size(asked.image))
        turn = pb.Turn(id=asked.turn_id)
        deltas = model.decoder.Decode.remote(decode)
        try:
            async for message in deltas:
                for event in answer.feed(delta_from_proto(message)):
                    response = event_to_proto(event, asked.image.id, name)
                    _add(turn, response)
                    if turn.finish_reason:  # kept before the client sees the end, and may ask the next question
                        await self._keep(request.conversation_id, turn)
                    yield response
        finally:
            if not turn.finish_reason:  # the client went away, or the decoder did
                deltas.cancel()
                await self._keep(request.conversation_id, turn)

    @unary
    async def UploadImage(  # noqa: N802
        self, request: pb.UploadImageRequest, grpc_context: RayServegRPCContext
    ) -> pb.UploadImageResponse:
        """Stores an image, so that questions can name it by its id."""
        return pb.UploadImageResponse(image=await asyncio.to_thread(self._put, request.image_bytes))

    @unary
    async def GetImage(  # noqa: N802
        self, request: pb.GetImageRequest, grpc_context: RayServegRPCContext
    ) -> pb.GetImageResponse:
        """Returns a stored image."""
        data, image = await asyncio.to_thread(self._get, request.image_id)
        return pb.GetImageResponse(image=image, image_bytes=data)

    @unary
    async def ListModels(  # noqa: N802
        self, request: pb.ListModelsRequest, grpc_context: RayServegRPCContext
    ) -> pb.ListModelsResponse:
        """Lists the models that can be asked."""
        models = [pb.Model(name=name, context_length=model.context_length) for name, model in self.models.items()]
        return pb.ListModelsResponse(models=models)

    @unary
    async def CreateConversation(  # noqa: N802
        self, request: pb.CreateConversationRequest, grpc_context: RayServegRPCContext
    ) -> pb.CreateConversationResponse:
        """Starts a conversation that the platform keeps."""
        return pb.CreateConversationResponse(conversation=await asyncio.to_thread(self._create, request))

    @unary
    async def GetConversation(  # noqa: N802
        self, request: pb.GetConversationRequest, grpc_context: RayServegRPCContext
    ) -> pb.GetConversationResponse:
        """Returns a conversation as it stands."""
        conversation = await asyncio.to_thread(self.conversations.get, request.conversation_id)
        return pb.GetConversationResponse(conversation=conversation)

    @unary
    async def RateAnswer(  # noqa: N802
        self, request: pb.RateAnswerRequest, grpc_context: RayServegRPCContext
    ) -> pb.RateAnswerResponse:
        """Says whether an answer of a conversation was good."""
        await asyncio.to_thread(self._rate, request)
        return pb.RateAnswerResponse()

    def _ask(self, request: pb.ChatRequest, name: str) -> _Asked:
        """Checks a question for the model called `name`; in a conversation, keeps it."""
        model = self.models[name]
        if not request.conversation_id:
            if request.HasField("turn"):
                raise ValueError("turn: only with conversation_id")
            self._check_length("history", request.history, request.question)
            data, image = self._image(request)
            return _Asked(data, image, self._question(request, model, image, request.regions, request.history))
        for field, _ in request.ListFields():
            if field.name in ("image_bytes", "image_id", "history"):
                raise ValueError(f"{field.name}: not with conversation_id; a conversation has its own")
        # Nobody else changes the conversation meanwhile: what the model reads is what is kept.
        with self.conversations.update(request.conversation_id) as conversation:
            count = len(conversation.turns)
            position = request.turn if request.HasField("turn") else count
            if position > count:
                raise ValueError(f"turn: must be at most {count}, the number of turns; got {position}")
            del conversation.turns[position:]
            if len({*conversation.regions, *request.regions}) > self.settings.max_regions:
                _forget_unmentioned(conversation, request.question)
            for number, region in request.regions.items():
                conversation.regions[number].CopyFrom(region)
            self._check_length("conversation_id", conversation.turns, request.question)
            data, image = self._stored(conversation.image.id), conversation.image
            history = [turn for turn in conversation.turns if turn.answer]
            question = self._question(request, model, image, conversation.regions, history)
            turn = conversation.turns.add(id=secrets.token_hex(16), question=request.question, model=name)
        return _Asked(data, image, question, turn.id)

    async def _keep(self, conversation_id: str, turn: pb.Turn) -> None:
        """Stores what there is of an answer, unless its turn was replaced meanwhile. Cancellation does not stop it."""

        def store() -> None:
            with suppress(NotFoundError), self.conversations.update(conversation_id) as conversation:
                for kept in conversation.turns:
                    if kept.id == turn.id:
                        kept.MergeFrom(turn)

        if turn.id:
            await asyncio.shield(asyncio.to_thread(store))

    def _create(self, request: pb.CreateConversationRequest) -> pb.Conversation:
        _, image = self._image(request)
        size = image_size(image)
        regions = self._regions(request.regions)
        check_regions(regions, size)
        self._check_length("turns", request.turns)
        conversation = pb.Conversation(image=image, regions=request.regions)
        for i, turn in enumerate(request.turns):
            check_text(turn.question, regions, f"turns[{i}].question")
            check_text(turn.answer, regions, f"turns[{i}].answer")
            spans = map(span_to_proto, find_spans(turn.answer, size))
            conversation.turns.add(id=secrets.token_hex(16), question=turn.question, answer=turn.answer, spans=spans)
        self.conversations.create(conversation)
        return conversation

    def _rate(self, request: pb.RateAnswerRequest) -> None:
        if request.rating not in RATINGS_FROM_PROTO:
            raise ValueError(f"rating: must be unspecified, up or down; got {request.rating}")
        limit = self.settings.max_comment_length
        if len(request.comment) > limit:
            raise ValueError(f"comment: at most {limit:,} characters, got {len(request.comment):,}")
        with self.conversations.update(request.conversation_id) as conversation:
            if request.turn >= len(conversation.turns):
                raise ValueError(f"turn: must be less than {len(conversation.turns)}, the number of turns; got {request.turn}")
            turn = conversation.turns[request.turn]
            turn.rating, turn.comment = request.rating, request.comment
        self.feedback.append(
            {
                "conversation": conversation.id,
                "turn": request.turn,
                "turn_id": turn.id,
                "image_id": conversation.image.id,
                "model": turn.model,
                "question": turn.question,
                "answer": turn.answer,
                "rating": RATINGS_FROM_PROTO[turn.rating] or "withdrawn",
                "comment": turn.comment,
            }
        )

    def _image(self, request: pb.ChatRequest | pb.CreateConversationRequest) -> tuple[bytes, pb.ImageInfo]:
        """The encoded image of a request, its id and its size."""
        match request.WhichOneof("image"):
            case "image_bytes":
                return request.image_bytes, self._put(request.image_bytes)
            case "image_id":
                return self._get(request.image_id)
        raise ValueError("image: set image_bytes or image_id")

    def _put(self, data: bytes) -> pb.ImageInfo:
        width, height = self._check(data)
        return pb.ImageInfo(id=self.images.put(data), width=width, height=height)

    def _get(self, image_id: str) -> tuple[bytes, pb.ImageInfo]:
        data = self._stored(image_id)
        width, height = self._check(data)
        return data, pb.ImageInfo(id=image_id, width=width, height=height)

    def _stored(self, image_id: str) -> bytes:
        data = self.images.get(image_id)
        if data is None:
            raise NotFoundError(f"image_id: no image {image_id!r}; upload it again, or send image_bytes")
        return data

    def _check(self, data: bytes) -> tuple[int, int]:
        """Width and height in pixels."""
        return open_image(data, self.settings.max_image_bytes, self.settings.max_image_pixels).size

    def _question(
        self,
        request: pb.ChatRequest,
        model: Model,
        image: pb.ImageInfo,
        regions: Mapping[int, regions_pb2.Region],
        history: Iterable[pb.Turn],
    ) -> PreparedQuestion:
        return prepare_question(
            request.question,
            self._regions(regions),
            [turn_from_proto(turn) for turn in history],
            processor=model.processor,
            context_length=model.context_length,
            size=image_size(image),
            max_new_tokens=sampling_from_proto(request.sampling).max_new_tokens,
        )

    def _regions(self, messages: Mapping[int, regions_pb2.Region]) -> dict[int, Region]:
        if len(messages) > self.settings.max_regions:
            raise ValueError(f"regions: at most {self.settings.max_regions} in all, got {len(messages)}")
        regions = {}
        for number, message in messages.items():
            try:
                regions[number] = region_from_proto(message)
            except ValueError as error:
                raise ValueError(f"regions[{number}]: {error}") from error
        return regions

    def _check_length(self, field: str, turns: Sequence[pb.Turn], question: str = "") -> None:
        if len(turns) > self.settings.max_turns:
            raise ValueError(f"{field}: at most {self.settings.max_turns:,} turns, got {len(turns):,}")
        length = len(question) + sum(len(turn.question) + len(turn.answer) for turn in turns)
        if length > self.settings.max_text_length:
            raise ValueError(f"{field}: at most {self.settings.max_text_length:,} characters with the question, got {length:,}")


def _forget_unmentioned(conversation: pb.Conversation, question: str) -> None:
    """Makes room for other regions: goes what neither a turn nor the question mentions."""
    texts = [question, *(text for turn in conversation.turns for text in (turn.question, turn.answer))]
    for number in set(conversation.regions) - {number for text in texts for number in mentioned_regions(text)}:
        del conversation.regions[number]


def _add(turn: pb.Turn, response: pb.ChatResponse) -> None:
    """Another piece of an answer."""
    match response.WhichOneof("event"):
        case "text_delta":
            turn.answer += response.text_delta.text
        case "span":
            turn.spans.append(response.span)
        case "finish":
            turn.finish_reason = response.finish.reason
