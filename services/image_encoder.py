"""The ImageEncoder deployment: the vision tower behind `ferret.v1.ImageEncoderService`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from ferret.v1 import tensor_pb2
from ferret.v1.image_encoder_pb2 import EncodeImageRequest, EncodeImageResponse
from torch import Tensor

from ferret_core.images import open_image
from services.batching import Batches
from services.features import Versions
from services.loading import load_part
from services.metrics import ENCODER_BATCH_SIZE
from services.settings import ModelSettings
from services.stage_wire import tensor_to_proto


class ImageEncoder:
    """Encoded images to feature maps."""

    def __init__(self, settings: ModelSettings) -> None:
        self.model, self.processor = load_part(settings, "vision_tower")
        self.version = Versions.of(settings).image
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="pictures")  # one at a time: a huge picture takes much memory
        self.batches = Batches(self._encode, settings.image_encoder.max_batch_size, ENCODER_BATCH_SIZE.observe)

    async def EncodeImage(self, request: EncodeImageRequest) -> EncodeImageResponse:  # noqa: N802 (the RPC's name)
        """One image to its feature map."""
        pixels = await asyncio.get_running_loop().run_in_executor(self.thread, self._pixels, request.image_bytes)
        (image_features,) = await self.batches.compute([pixels])
        return EncodeImageResponse(image_features=image_features, version=self.version)

    def _pixels(self, data: bytes) -> Tensor:
        """`(3, S, S)`: whatever the picture's size, all that waits takes as much."""
        image = open_image(data, max_bytes=len(data), max_pixels=sys.maxsize)  # the gateway has checked it
        return self.processor.pixel_values([image])[0]

    @torch.inference_mode()
    def _encode(self, pictures: Sequence[Tensor]) -> Sequence[tensor_pb2.Tensor]:
        """A map `(1, N, d)` for each."""
        pixels = torch.stack(list(pictures)).to(self.model.device, self.model.dtype)
        return [tensor_to_proto(image_features) for image_features in self.model.model.encode_images(pixels).cpu().split(1)]
