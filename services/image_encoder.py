"""The ImageEncoder deployment: the vision tower behind `ferret.v1.ImageEncoderService`."""

from __future__ import annotations

import asyncio
import sys

import torch
from ferret.v1.image_encoder_pb2 import EncodeImageRequest, EncodeImageResponse

from ferret_core.images import open_image
from services.loading import load_part
from services.settings import ModelSettings
from services.stage_wire import tensor_to_proto


class ImageEncoder:
    """Encoded images to feature maps."""

    def __init__(self, settings: ModelSettings) -> None:
        self.model, self.processor = load_part(settings, "vision_tower")

    async def EncodeImage(self, request: EncodeImageRequest) -> EncodeImageResponse:  # noqa: N802 (the RPC's name)
        """One image to its feature map."""
        return await asyncio.to_thread(self._encode, request.image_bytes)

    @torch.inference_mode()
    def _encode(self, data: bytes) -> EncodeImageResponse:
        image = open_image(data, max_bytes=len(data), max_pixels=sys.maxsize)  # the gateway has checked it
        pixels = self.processor.pixel_values([image]).to(self.model.device, self.model.dtype)
        return EncodeImageResponse(image_features=tensor_to_proto(self.model.model.encode_images(pixels)))
