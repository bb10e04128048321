"""Pictures as people bring them, made ready once: upright, not too large, and the same bytes for browser and model."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Self

from PIL import Image, ImageOps

from ferret_core.geometry import ImageSize
from ferret_core.images import image_id, open_image

_AS_THEY_ARE = {"JPEG", "PNG", "WEBP"}  # what every browser shows
_METADATA = {"exif", "xmp", "XML:com.adobe.xmp"}  # may turn the picture, and say where it was taken
_THUMBNAIL = (168, 112)


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that can be drawn on."""

    name: str
    id: str
    """As the platform has it: `sha256:` and the digest of the bytes."""
    data: bytes = field(repr=False)
    size: ImageSize
    thumbnail: bytes = field(repr=False)

    @classmethod
    def open(cls, name: str, data: bytes, max_bytes: int, max_side: int) -> Self:
        """From an uploaded file, without its metadata: nobody is told where a photo was taken.

        Raises `ImageError` if it is no image, or too large.
        """
        image = open_image(data, max_bytes)
        with Image.open(io.BytesIO(data)) as original:
            plain = original.format in _AS_THEY_ARE and original.mode in ("RGB", "L")
            ready = plain and not getattr(original, "is_animated", False) and not _METADATA & original.info.keys()
        if not ready or max(image.size) > max_side:
            image.thumbnail((max_side, max_side))
            data = _webp(image)
        return cls(name, image_id(data), data, ImageSize(*image.size), _webp(ImageOps.fit(image, _THUMBNAIL)))


def _webp(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=90)
    return buffer.getvalue()
