"""The RegionSampler deployment: the spatial-aware visual sampler behind `ferret.v1.RegionSamplerService`."""

from __future__ import annotations

import asyncio

import torch
from ferret.v1.region_sampler_pb2 import EmbedRegionsRequest, EmbedRegionsResponse

from ferret_core.geometry import ImageSize
from services.settings import ModelSettings
from services.stages import load_part
from services.wire import region_from_proto, tensor_from_proto, tensor_to_proto


class RegionSampler:
    """Regions of an image to embeddings."""

    def __init__(self, settings: ModelSettings) -> None:
        self.model, self.processor = load_part(settings, "region_encoder")

    async def EmbedRegions(self, request: EmbedRegionsRequest) -> EmbedRegionsResponse:  # noqa: N802 (the RPC's name)
        """Regions of one image to one embedding each."""
        return await asyncio.to_thread(self._embed, request)

    @torch.inference_mode()
    def _embed(self, request: EmbedRegionsRequest) -> EmbedRegionsResponse:
        size = ImageSize(request.image_width, request.image_height)
        points = torch.stack([self.processor.encode_region(region_from_proto(r), size) for r in request.regions])
        features = tensor_from_proto(request.features).to(self.model.device)
        embeddings = self.model.model.encode_regions(features, points.to(self.model.device))
        return EmbedRegionsResponse(embeddings=tensor_to_proto(embeddings))
