"""The RegionSampler deployment: the spatial-aware visual sampler behind `ferret.v1.RegionSamplerService`."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import torch
from ferret.v1.region_sampler_pb2 import EncodeRegionsRequest, EncodeRegionsResponse

from ferret_core.geometry import ImageSize
from services.loading import load_part
from services.settings import ModelSettings
from services.stage_wire import tensor_from_proto, tensor_to_proto
from services.wire import region_from_proto


class RegionSampler:
    """Regions of an image to region features."""

    def __init__(self, settings: ModelSettings) -> None:
        self.model, self.processor = load_part(settings, "region_encoder")
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="sampler")  # one at a time: a huge mask takes much memory

    async def EncodeRegions(self, request: EncodeRegionsRequest) -> EncodeRegionsResponse:  # noqa: N802 (the RPC's name)
        """One vector of decoder width for each region of an image."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, self._encode, request)

    @torch.inference_mode()
    def _encode(self, request: EncodeRegionsRequest) -> EncodeRegionsResponse:
        size = ImageSize(request.image_width, request.image_height)
        points = torch.stack([self.processor.region_points(region_from_proto(r), size) for r in request.regions])
        image_features = tensor_from_proto(request.image_features).to(self.model.device)
        region_features = self.model.model.encode_regions(image_features, points.to(self.model.device))
        return EncodeRegionsResponse(region_features=tensor_to_proto(region_features))
