"""What the vision tower makes of an image and the sampler of its regions, computed once and then taken from a cache."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence

from ferret.v1 import ferret_pb2 as pb
from ferret.v1 import regions_pb2
from ferret.v1.tensor_pb2 import Tensor

from ferret_core.checkpoint.revision import revision
from ferret_core.geometry import ImageSize, Region
from ferret_core.model.processor import PREPROCESSING
from ferret_core.model.region_encoder import SAMPLING
from services.metrics import FEATURES
from services.settings import DeploymentSettings, ModelSettings
from services.stores.caches import Cache
from services.wire import image_size, region_to_proto

EncodeImage = Callable[[bytes], Awaitable[Tensor]]
EncodeRegions = Callable[[Tensor, ImageSize, Sequence[Region]], Awaitable[Tensor]]


class Features:
    """Features of one model.

    An image is known by the hash of its bytes, a region by that of its shape and not of its bounding box; the weights, how they
    are computed with and what is done before are parts of the key, too.
    """

    def __init__(self, settings: ModelSettings, cache: Cache, encode_image: EncodeImage, encode_regions: EncodeRegions) -> None:
        """
        Args:
            settings: of the model.
            cache: where its features are looked for first.
            encode_image: the feature map of an encoded image.
            encode_regions: one row for each region, given the feature map and the size of their image.
        """
        self.revision = revision(settings.path)
        dtype = settings.dtype or "default"
        self._image_key = f"{self.revision}:{dtype}:{_processor(settings.image_encoder)}:{PREPROCESSING}"
        self._region_key = f"{_processor(settings.region_sampler)}:{SAMPLING}"
        self.cache, self._encode_image, self._encode_regions = cache, encode_image, encode_regions

    async def of_image(self, image: pb.ImageInfo, data: bytes) -> Tensor:
        """Its feature map.

        Args:
            image: its id.
            data: its encoded bytes.
        """
        key = self.image_key(image)
        (kept,) = await asyncio.to_thread(self.cache.get, [key])
        FEATURES.inc(tags={"of": "image", "kept": str(kept is not None)})
        if kept is not None:
            return Tensor.FromString(kept)
        features = await self._encode_image(data)
        await asyncio.to_thread(self.cache.put, {key: features.SerializeToString()})
        return features

    async def of_regions(self, image: pb.ImageInfo, regions: Sequence[Region], image_features: Tensor) -> Tensor:
        """One row for each region.

        Args:
            image: its id and its size.
            regions: in its pixels; at least one.
            image_features: of `of_image`.
        """
        keys = [self.region_key(image, region_to_proto(region)) for region in regions]
        shapes = dict(zip(keys, regions, strict=True))
        kept = dict(zip(shapes, await asyncio.to_thread(self.cache.get, list(shapes)), strict=True))
        missing = [key for key, value in kept.items() if value is None]
        for value in kept.values():
            FEATURES.inc(tags={"of": "region", "kept": str(value is not None)})
        rows = {key: Tensor.FromString(value) for key, value in kept.items() if value is not None}
        if missing:
            encoded = await self._encode_regions(image_features, image_size(image), [shapes[key] for key in missing])
            computed = dict(zip(missing, _rows(encoded), strict=True))
            await asyncio.to_thread(self.cache.put, {key: row.SerializeToString() for key, row in computed.items()})
            rows |= computed
        return _stacked([rows[key] for key in keys])

    def image_key(self, image: pb.ImageInfo) -> str:
        """Of all that its feature map depends on."""
        return f"image:{self._image_key}:{image.id}"

    def region_key(self, image: pb.ImageInfo, region: regions_pb2.Region) -> str:
        """Of all that its embedding depends on."""
        shape = hashlib.sha256(region.SerializeToString(deterministic=True)).hexdigest()
        return f"region:{self._image_key}:{self._region_key}:{image.id}:{shape}"


def _processor(settings: DeploymentSettings) -> str:
    """What a stage computes with: something else would round otherwise."""
    return "gpu" if settings.num_gpus else f"cpu{settings.threads}"


def _rows(tensor: Tensor) -> list[Tensor]:
    count, width = tensor.shape
    size = len(tensor.data) // count
    rows = (tensor.data[i * size : (i + 1) * size] for i in range(count))
    return [Tensor(type=tensor.type, shape=[1, width], data=row) for row in rows]


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    width = rows[0].shape[1]
    return Tensor(type=rows[0].type, shape=[len(rows), width], data=b"".join(row.data for row in rows))
