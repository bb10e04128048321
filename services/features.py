"""What the vision tower makes of an image and the sampler of its regions, computed once and then taken from a cache."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from ferret.v1 import ferret_pb2 as pb
from ferret.v1 import regions_pb2
from ferret.v1.image_encoder_pb2 import EncodeImageResponse
from ferret.v1.region_sampler_pb2 import EncodeRegionsResponse
from ferret.v1.tensor_pb2 import Tensor

from ferret_core.checkpoint.revision import revision
from ferret_core.geometry import ImageSize, Region
from ferret_core.model.processor import PREPROCESSING
from ferret_core.model.region_encoder import SAMPLING
from services.metrics import FEATURES
from services.settings import DeploymentSettings, ModelSettings
from services.stage_wire import tensor_from_proto, tensor_to_proto
from services.stores.caches import Cache
from services.wire import image_size, region_to_proto

EncodeImage = Callable[[bytes], Awaitable[EncodeImageResponse]]
EncodeRegions = Callable[[Tensor, ImageSize, Sequence[Region]], Awaitable[EncodeRegionsResponse]]


@dataclass(frozen=True, slots=True)
class Versions:
    """All that features depend on beside their image and their region: the weights, how they are computed with, what is done
    before. The replicas of a model differ in them while a change of it is deployed."""

    weights: str
    """The checkpoint's revision."""
    image: str
    """Of feature maps."""
    region: str
    """Of embeddings of regions."""

    @classmethod
    def of(cls, settings: ModelSettings) -> Self:
        """Of replicas with these settings."""
        weights = revision(settings.path)
        image = f"{weights}:{settings.dtype or 'default'}:{_processor(settings.image_encoder)}:{PREPROCESSING}"
        return cls(weights, image, f"{image}:{_processor(settings.region_sampler)}:{SAMPLING}")


class Features:
    """Features of one model.

    An image is known by the hash of its bytes, a region by that of its shape and not of its bounding box; the version is part
    of the key, too. What replicas of another version made serves the question it was made for, and is not kept.
    """

    def __init__(self, settings: ModelSettings, cache: Cache, encode_image: EncodeImage, encode_regions: EncodeRegions) -> None:
        """
        Args:
            settings: of the model.
            cache: where its features are looked for first.
            encode_image: the feature map of an encoded image.
            encode_regions: one row for each region, given the feature map and the size of their image.
        """
        self.versions = Versions.of(settings)
        self.cache, self._encode_image, self._encode_regions = cache, encode_image, encode_regions

    async def of_image(self, image: pb.ImageInfo, data: bytes) -> EncodeImageResponse:
        """Its feature map, of whichever version it is.

        Args:
            image: its id.
            data: its encoded bytes.
        """
        key = self.image_key(image)
        (kept,) = await asyncio.to_thread(self.cache.get, [key])
        FEATURES.inc(tags={"of": "image", "kept": str(kept is not None)})
        if kept is not None:
            return EncodeImageResponse(image_features=Tensor.FromString(kept), version=self.versions.image)
        encoded = await self._encode_image(data)
        if encoded.version == self.versions.image:
            await asyncio.to_thread(self.cache.put, {key: encoded.image_features.SerializeToString()})
        return encoded

    async def of_regions(self, image: pb.ImageInfo, regions: Sequence[Region], encoded: EncodeImageResponse) -> Tensor:
        """One row for each region.

        Args:
            image: its id and its size.
            regions: in its pixels; at least one.
            encoded: of `of_image`.
        """
        keys = [self.region_key(image, region_to_proto(region)) for region in regions]
        shapes = dict(zip(keys, regions, strict=True))
        kept = dict(zip(shapes, await asyncio.to_thread(self.cache.get, list(shapes)), strict=True))
        missing = [key for key, value in kept.items() if value is None]
        for value in kept.values():
            FEATURES.inc(tags={"of": "region", "kept": str(value is not None)})
        rows = {key: tensor_from_proto(Tensor.FromString(value)) for key, value in kept.items() if value is not None}
        if missing:
            sampled = await self._encode_regions(encoded.image_features, image_size(image), [shapes[key] for key in missing])
            computed = dict(zip(missing, tensor_from_proto(sampled.region_features).split(1), strict=True))
            if (encoded.version, sampled.version) == (self.versions.image, self.versions.region):
                values = {key: tensor_to_proto(row).SerializeToString() for key, row in computed.items()}
                await asyncio.to_thread(self.cache.put, values)
            rows |= computed
        return tensor_to_proto(torch.cat([rows[key] for key in keys]))  # of the wider type, if theirs differ

    def image_key(self, image: pb.ImageInfo) -> str:
        """Of all that its feature map depends on."""
        return f"image:{self.versions.image}:{image.id}"

    def region_key(self, image: pb.ImageInfo, region: regions_pb2.Region) -> str:
        """Of all that its embedding depends on."""
        shape = hashlib.sha256(region.SerializeToString(deterministic=True)).hexdigest()
        return f"region:{self.versions.region}:{image.id}:{shape}"


def _processor(settings: DeploymentSettings) -> str:
    """What a stage computes with: something else would round otherwise."""
    return "gpu" if settings.num_gpus else f"cpu{settings.threads}"
