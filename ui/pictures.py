"""Pictures as people bring them, made ready once: upright, not too large, and the same bytes for browser and model."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Self

from PIL import ExifTags, Image

from ferret_core.geometry import ImageSize
from ferret_core.images import image_id, open_image

_AS_THEY_ARE = {"JPEG", "PNG", "WEBP"}  # what every browser shows


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that can be drawn on."""

    name: str
    data: bytes = field(repr=False)
    size: ImageSize

    @classmethod
    def open(cls, name: str, data: bytes, max_bytes: int, max_side: int) -> Self:
        """From an uploaded file. Raises `ImageError` if it is none, or too large."""
        image = open_image(data, max_bytes)
        with Image.open(io.BytesIO(data)) as original:
            upright = original.getexif().get(ExifTags.Base.Orientation, 1) == 1
            plain = original.format in _AS_THEY_ARE and original.mode in ("RGB", "L")
        if not (upright and plain and max(image.size) <= max_side):
            image.thumbnail((max_side, max_side))
            buffer = io.BytesIO()
            image.save(buffer, "WEBP", quality=90)
            data = buffer.getvalue()
        return cls(name, data, ImageSize(*image.size))

    @property
    def digest(self) -> str:
        """64 hexadecimal digits that stand for the bytes."""
        return image_id(self.data).removeprefix("sha256:")
