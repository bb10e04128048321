"""The RegionSampler deployment: the spatial-aware visual sampler behind `ferret.v1.RegionSamplerService`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from ferret.v1.region_sampler_pb2 import EncodeRegionsRequest, EncodeRegionsResponse
from torch import Tensor

from ferret_core.geometry import ImageSize
from services.batching import Batches
from services.features import Versions
from services.loading import load_part
from services.metrics import SAMPLER_BATCH_SIZE
from services.settings import ModelSettings
from services.stage_wire import tensor_from_proto, tensor_to_proto
from services.wire import region_from_proto

_Region = tuple[Tensor, Tensor]
"""The map `(1, N, d)` of its image, and its points `(P, 2)`."""


class RegionSampler:
    """Regions of an image to region features."""

    def __init__(self, settings: ModelSettings) -> None:
        self.model, self.processor = load_part(settings, "region_encoder")
        self.version = Versions.of(settings).region
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="masks")  # one at a time: a huge mask takes much memory
        self.batches = Batches(self._encode, settings.region_sampler.max_batch_size, SAMPLER_BATCH_SIZE.observe)

    async def EncodeRegions(self, request: EncodeRegionsRequest) -> EncodeRegionsResponse:  # noqa: N802 (the RPC's name)
        """One vector of decoder width for each region of an image."""
        regions = await asyncio.get_running_loop().run_in_executor(self.thread, self._regions, request)
        region_features = await self.batches.compute(regions)
        return EncodeRegionsResponse(region_features=tensor_to_proto(torch.stack(region_features)), version=self.version)

    def _regions(self, request: EncodeRegionsRequest) -> list[_Region]:
        size = ImageSize(request.image_width, request.image_height)
        image_features = tensor_from_proto(request.image_features)
        return [(image_features, self.processor.region_points(region_from_proto(each), size)) for each in request.regions]

    @torch.inference_mode()
    def _encode(self, regions: Sequence[_Region]) -> Sequence[Tensor]:
        """An embedding `(D,)` for each; but for rounding the same whoever else is there: the gateway keeps it for others."""
        maps = list({id(image_features): image_features for image_features, _ in regions}.values())
        places = {id(image_features): place for place, image_features in enumerate(maps)}
        owners = torch.tensor([places[id(image_features)] for image_features, _ in regions])
        points = torch.stack([each for _, each in regions])
        device = self.model.device
        image_features = torch.cat(maps).to(device, self.model.dtype)  # they may be an encoder's that computes in another type
        embeddings = self.model.model.encode_regions(image_features, points.to(device), owners.to(device))
        return embeddings.cpu().unbind()
