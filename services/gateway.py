"""The Gateway deployment: `ferret.v1.FerretService` to the outside, the three model stages inside.

It checks every request before any model sees it, so that nothing a client sends can reach, let alone kill, a replica
that holds weights.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

from ferret.v1 import ferret_pb2 as pb
from ferret.v1.image_encoder_pb2 import EncodeImageRequest
from ferret.v1.llm_decoder_pb2 import DecodeRequest
from ferret.v1.region_sampler_pb2 import EncodeRegionsRequest
from ray.serve.grpc_util import RayServegRPCContext
from ray.serve.handle import DeploymentHandle

from ferret_core.checkpoint.bundled import checkpoint_path
from ferret_core.conversation import AnswerStream, PreparedQuestion, prepare_question
from ferret_core.geometry import ImageSize
from ferret_core.images import open_image
from ferret_core.model import FerretConfig, FerretProcessor
from ferret_core.prompt import Turn
from services.errors import NotFoundError, streaming, unary
from services.settings import PlatformSettings
from services.stage_wire import delta_from_proto, sampling_from_proto
from services.stores import ImageStore
from services.wire import event_to_proto, region_from_proto, region_to_proto


class Model:
    """What the gateway knows of a model, and how it reaches it. Holds no weights."""

    def __init__(self, path: str, encoder: DeploymentHandle, sampler: DeploymentHandle, decoder: DeploymentHandle) -> None:
        self.processor = FerretProcessor.from_pretrained(checkpoint_path(path))
        self.context_length = FerretConfig.from_pretrained(checkpoint_path(path)).context_length
        self.encoder, self.sampler, self.decoder = encoder, sampler, decoder.options(stream=True)


class Gateway:
    """Answers `FerretService`."""

    def __init__(self, settings: PlatformSettings, stages: Mapping[str, tuple[DeploymentHandle, ...]]) -> None:
        self.settings = settings
        self.models = {name: Model(settings.models[name].path, *handles) for name, handles in stages.items()}
        self.images = ImageStore(settings.image_directory, settings.image_directory_bytes)

    @streaming
    async def Chat(  # noqa: N802 (the RPC's name)
        self, request: pb.ChatRequest, grpc_context: RayServegRPCContext
    ) -> AsyncIterator[pb.ChatResponse]:
        """Answers one question about one image, as it is being written."""
        name = request.model or next(iter(self.models))
        if name not in self.models:
            raise NotFoundError(f"model: no model {name!r}; there are {', '.join(self.models)}")
        model = self.models[name]
        data, image_id, size = await asyncio.to_thread(self._image, request)
        question = await asyncio.to_thread(self._question, request, model, size)

        image = await model.encoder.EncodeImage.remote(EncodeImageRequest(image_bytes=data))
        decode = DecodeRequest(input_ids=question.input_ids, image_features=image.image_features, sampling=request.sampling)
        if question.regions:
            regions = EncodeRegionsRequest(
                image_features=image.image_features,
                image_width=size.width,
                image_height=size.height,
                regions=[region_to_proto(region) for region in question.regions],
            )
            encoded = await model.sampler.EncodeRegions.remote(regions)
            decode.region_features.CopyFrom(encoded.region_features)

        answer = AnswerStream(question, size)
        deltas = model.decoder.Decode.remote(decode)
        done = False
        try:
            async for message in deltas:
                for event in answer.feed(delta_from_proto(message)):
                    yield event_to_proto(event, image_id, name)
            done = True
        finally:
            if not done:  # the client went away, or the decoder did
                deltas.cancel()

    @unary
    async def UploadImage(  # noqa: N802
        self, request: pb.UploadImageRequest, grpc_context: RayServegRPCContext
    ) -> pb.UploadImageResponse:
        """Stores an image, so that questions can name it by its id."""
        size = await asyncio.to_thread(self._check, request.image_bytes)
        image_id = await asyncio.to_thread(self.images.put, request.image_bytes)
        return pb.UploadImageResponse(image=pb.ImageInfo(id=image_id, width=size.width, height=size.height))

    @unary
    async def GetImage(  # noqa: N802
        self, request: pb.GetImageRequest, grpc_context: RayServegRPCContext
    ) -> pb.GetImageResponse:
        """Returns a stored image."""
        data = await asyncio.to_thread(self._stored, request.image_id)
        size = await asyncio.to_thread(self._check, data)
        image = pb.ImageInfo(id=request.image_id, width=size.width, height=size.height)
        return pb.GetImageResponse(image=image, image_bytes=data)

    @unary
    async def ListModels(  # noqa: N802
        self, request: pb.ListModelsRequest, grpc_context: RayServegRPCContext
    ) -> pb.ListModelsResponse:
        """Lists the models that can be asked."""
        models = [pb.Model(name=name, context_length=model.context_length) for name, model in self.models.items()]
        return pb.ListModelsResponse(models=models)

    def _image(self, request: pb.ChatRequest) -> tuple[bytes, str, ImageSize]:
        """The encoded image of a request, its id and its size."""
        match request.WhichOneof("image"):
            case "image_bytes":
                size = self._check(request.image_bytes)
                return request.image_bytes, self.images.put(request.image_bytes), size
            case "image_id":
                data = self._stored(request.image_id)
                return data, request.image_id, self._check(data)
        raise ValueError("image: set image_bytes or image_id")

    def _stored(self, image_id: str) -> bytes:
        data = self.images.get(image_id)
        if data is None:
            raise NotFoundError(f"image_id: no image {image_id!r}; upload it again, or send image_bytes")
        return data

    def _check(self, data: bytes) -> ImageSize:
        return ImageSize(*open_image(data, self.settings.max_image_bytes, self.settings.max_image_pixels).size)

    def _question(self, request: pb.ChatRequest, model: Model, size: ImageSize) -> PreparedQuestion:
        if len(request.regions) > self.settings.max_regions:
            raise ValueError(f"regions: at most {self.settings.max_regions} in a request, got {len(request.regions)}")
        if len(request.history) > self.settings.max_turns:
            raise ValueError(f"history: at most {self.settings.max_turns:,} turns, got {len(request.history):,}")
        length = len(request.question) + sum(len(turn.question) + len(turn.answer) for turn in request.history)
        if length > self.settings.max_text_length:
            raise ValueError(f"history: at most {self.settings.max_text_length:,} characters with the question, got {length:,}")
        regions = {}
        for number, message in request.regions.items():
            try:
                regions[number] = region_from_proto(message)
            except ValueError as error:
                raise ValueError(f"regions[{number}]: {error}") from error
        history = [Turn(turn.question, turn.answer) for turn in request.history]
        return prepare_question(
            request.question,
            regions,
            history,
            processor=model.processor,
            context_length=model.context_length,
            size=size,
            max_new_tokens=sampling_from_proto(request.sampling).max_new_tokens,
        )
