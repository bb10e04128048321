"""Pictures as people bring them, made ready once: upright, not too large, and the same bytes for browser and model."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Self

from PIL import ExifTags, Image, ImageOps

from ferret_core.geometry import ImageSize
from ferret_core.images import image_id, open_image

_AS_THEY_ARE = {"JPEG", "PNG", "WEBP"}  # what every browser shows
_THUMBNAIL = (168, 112)


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that can be drawn on."""

    name: str
    data: bytes = field(repr=False)
    size: ImageSize
    thumbnail: bytes = field(repr=False)

    @classmethod
    def open(cls, name: str, data: bytes, max_bytes: int, max_side: int) -> Self:
        """From an uploaded file. Raises `ImageError` if it is none, or too large."""
        image = open_image(data, max_bytes)
        with Image.open(io.BytesIO(data)) as original:
            upright = original.getexif().get(ExifTags.Base.Orientation, 1) == 1
            plain = original.format in _AS_THEY_ARE and original.mode in ("RGB", "L")
        if not (upright and plain and max(image.size) <= max_side):
            image.thumbnail((max_side, max_side))
            data = _webp(image)
        return cls(name, data, ImageSize(*image.size), _webp(ImageOps.fit(image, _THUMBNAIL)))

    @property
    def digest(self) -> str:
        """64 hexadecimal digits that stand for the bytes."""
        return image_id(self.data).removeprefix("sha256:")


def _webp(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=90)
    return buffer.getvalue()
