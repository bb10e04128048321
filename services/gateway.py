"""The Gateway deployment: `ferret.v1.FerretService` (and OpenAI's API) to the outside, the three model stages inside.

It checks every request before any model sees it, so that nothing a client sends can reach, let alone kill, a replica
that holds weights.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress

from ferret.v1 import ferret_pb2 as pb
from ray.serve.grpc_util import RayServegRPCContext
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from ferret_core.conversation import AnswerStream
from services.access import Access, TokenFile, open_limits
from services.calls import streaming, unary
from services.errors import NotFoundError, UnavailableError
from services.kept_conversations import KeptConversations
from services.metrics import TokenTimer
from services.model import Model
from services.openai.app import openai_app
from services.pictures import Pictures
from services.questions import Questions, add_to_turn
from services.settings import PlatformSettings
from services.stores import open_stores
from services.wire import event_to_proto, image_size


class Gateway:
    """Answers `FerretService` over gRPC, and over HTTP what OpenAI's clients say."""

    def __init__(self, settings: PlatformSettings, stages: Mapping[str, tuple[DeploymentHandle, ...]]) -> None:
        self.settings = settings
        self.stores = open_stores(settings.stores)
        tokens = TokenFile(settings.tokens_file) if settings.tokens_file else None
        self.access = Access(tokens, open_limits(self.stores.redis), settings.remote_calls)
        models = settings.models
        self.models = {name: Model(name, models[name], self.stores.cache, handles) for name, handles in stages.items()}
        self.pictures = Pictures(self.stores.images, settings)
        self.questions = Questions(self.stores, self.pictures, settings)
        self.conversations = KeptConversations(self.stores, settings)

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """What Serve sends HTTP requests to; its name is Serve's."""
        return openai_app(self)

    @streaming
    async def Chat(  # noqa: N802 (the RPC's name)
        self, request: pb.ChatRequest, grpc_context: RayServegRPCContext
    ) -> AsyncGenerator[pb.ChatResponse]:
        """Answers one question about one image, as it is being written."""
        name = request.model or next(iter(self.models))
        if name not in self.models:
            raise NotFoundError(f"model: no model {name!r}; there are {', '.join(self.models)}")
        model, timer = self.models[name], TokenTimer(name)
        retried = "grpc-previous-rpc-attempts" in dict(grpc_context.invocation_metadata())
        question = await self.questions.ask(request, model, retried)

        prepared, image = question.prepared, question.image
        answer, turn = AnswerStream(prepared, image_size(image)), pb.Turn(id=question.turn_id)
        try:
            encoded = await model.features.of_image(image, question.data)
            regions = await model.features.of_regions(image, prepared.regions, encoded) if prepared.regions else None
            deltas = model.stages.decode(image.id, prepared.input_ids, encoded.image_features, regions, request.sampling)
            async with aclosing(deltas):
                async for delta in deltas:
                    timer.tick()
                    for event in answer.feed(delta):
                        response = event_to_proto(event, image.id, name)
                        add_to_turn(turn, response)
                        if turn.finish_reason:  # kept before the client sees the end, and may ask the next question
                            await self.questions.keep(request.conversation_id, turn)
                        yield response
        except Exception:
            if not turn.answer:
                with suppress(UnavailableError):  # what the client should see is what went wrong first
                    await self.questions.take_back(request.conversation_id, question)
            raise
        finally:
            timer.end()
            if turn.answer and not turn.finish_reason:  # the client went away, or the decoder did
                await self.questions.keep(request.conversation_id, turn)

    @unary
    async def UploadImage(  # noqa: N802
        self, request: pb.UploadImageRequest, grpc_context: RayServegRPCContext
    ) -> pb.UploadImageResponse:
        """Stores an image, so that questions can name it by its id."""
        data, image = await self.pictures.of(request)
        await asyncio.to_thread(self.stores.images.put, data)
        return pb.UploadImageResponse(image=image)

    @unary
    async def GetImage(  # noqa: N802
        self, request: pb.GetImageRequest, grpc_context: RayServegRPCContext
    ) -> pb.GetImageResponse:
        """Returns a stored image."""
        data, image = await self.pictures.get(request.image_id)
        return pb.GetImageResponse(image=image, image_bytes=data)

    @unary
    async def ListModels(  # noqa: N802
        self, request: pb.ListModelsRequest, grpc_context: RayServegRPCContext
    ) -> pb.ListModelsResponse:
        """Lists the models that can be asked."""
        models = [
            pb.Model(name=name, context_length=model.context_length, revision=model.revision)
            for name, model in self.models.items()
        ]
        return pb.ListModelsResponse(models=models)

    @unary
    async def CreateConversation(  # noqa: N802
        self, request: pb.CreateConversationRequest, grpc_context: RayServegRPCContext
    ) -> pb.CreateConversationResponse:
        """Starts a conversation that the platform keeps."""
        data, image = await self.pictures.of(request)
        conversation = await asyncio.to_thread(self.conversations.create, request, data, image)
        return pb.CreateConversationResponse(conversation=conversation)

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
        await asyncio.to_thread(self.conversations.rate, request)
        return pb.RateAnswerResponse()

    @unary
    async def ExportConversation(  # noqa: N802
        self, request: pb.ExportConversationRequest, grpc_context: RayServegRPCContext
    ) -> pb.ExportConversationResponse:
        """Returns all that is kept of a conversation."""
        archive = await asyncio.to_thread(self.conversations.export, request.conversation_id)
        return pb.ExportConversationResponse(archive=archive)

    @unary
    async def DeleteConversation(  # noqa: N802
        self, request: pb.DeleteConversationRequest, grpc_context: RayServegRPCContext
    ) -> pb.DeleteConversationResponse:
        """Removes all that is kept of a conversation."""
        await asyncio.to_thread(self.conversations.delete, request.conversation_id)
        return pb.DeleteConversationResponse()
