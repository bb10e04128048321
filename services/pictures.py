"""The picture that a request is about: sent with it, kept from before, or fetched from elsewhere."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from ferret.v1 import ferret_pb2 as pb

from ferret_core.images import image_id, open_image
from services.errors import InvalidRequestError, NotFoundError
from services.fetching import fetch_image
from services.settings import PlatformSettings
from services.stores import ImageStore

# The largest takes 0.8 GB while it is checked, so few at a time; not on asyncio's own threads, where all else that waits would
# wait for them.
_DECODING = ThreadPoolExecutor(4, "decoding")


class Pictures:
    """Pictures by their ids, each decoded before it is taken, so that none that is damaged or too large gets any further.

    Methods raise `ValueError` naming what is wrong with a picture, and `NotFoundError` for an id that is not, or no longer,
    known.
    """

    def __init__(self, images: ImageStore, settings: PlatformSettings) -> None:
        self.images, self.settings = images, settings

    async def of(
        self, request: pb.ChatRequest | pb.CreateConversationRequest | pb.UploadImageRequest
    ) -> tuple[bytes, pb.ImageInfo]:
        """The encoded picture of a request, fetched if it names an address, with its id and its size. It is not kept yet."""
        match request.WhichOneof("image"):
            case "image_bytes":
                data = request.image_bytes
            case "image_url":
                hosts, limit = self.settings.allowed_image_hosts, self.settings.max_image_bytes
                data = await fetch_image(request.image_url, hosts, limit)
            case "image_id":
                return await self.get(request.image_id)  # type: ignore[union-attr]  # an upload has no such case
            case _:
                raise InvalidRequestError("image: set image_bytes, image_id or image_url")
        width, height = await self._check(data)
        return data, pb.ImageInfo(id=image_id(data), width=width, height=height)

    async def get(self, identity: str) -> tuple[bytes, pb.ImageInfo]:
        """A picture that is kept: encoded, its id and its size."""
        data = await asyncio.to_thread(self.read, identity)
        width, height = await self._check(data)
        return data, pb.ImageInfo(id=identity, width=width, height=height)

    def read(self, identity: str) -> bytes:
        """Its bytes alone."""
        data = self.images.get(identity)
        if data is None:
            raise NotFoundError(f"image_id: no image {identity!r}; upload it again, or send image_bytes")
        return data

    async def _check(self, data: bytes) -> tuple[int, int]:
        """Width and height in pixels."""

        def size() -> tuple[int, int]:  # of the picture alone: what it was decoded to goes at once
            return open_image(data, self.settings.max_image_bytes, self.settings.max_image_pixels).size

        return await asyncio.get_running_loop().run_in_executor(_DECODING, size)
