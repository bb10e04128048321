"""The pictures that records name.

    Images("s3://bucket/coco").open(record)     # RGB, upright, of the size that the record says

They lie in a directory or in a bucket; each is read when it is asked for.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ferret_core import s3
from ferret_core.data.records import Record
from ferret_core.geometry import ImageSize
from ferret_core.images import ImageError, open_image


class Images:
    """The pictures under a directory or an `s3://BUCKET/PREFIX`."""

    def __init__(self, root: str | Path) -> None:
        self.root = str(root)

    def open(self, record: Record) -> Image.Image:
        """A record's picture: RGB, EXIF rotation applied.

        Raises:
            ValueError: none, missing, unreadable, or of another size than the record's.
            OSError: the disk or the store cannot be read, which is not the record's fault.
        """
        if not record.image:
            raise ValueError(f"record {record.id}: has no image")
        place = self.locate(record.image)
        try:
            image = open_image(s3.read_object(place) if s3.is_url(place) else place)
        except FileNotFoundError as error:
            raise ValueError(f"record {record.id}: image {place} is missing") from error
        except ImageError as error:
            raise ValueError(f"record {record.id}: image {place}: {str(error).removeprefix('image: ')}") from error
        if ImageSize(*image.size) != record.size:
            raise ValueError(
                f"record {record.id}: image {place} is {ImageSize(*image.size)} pixels, but the record says {record.size}"
            )
        return image

    def locate(self, image: str) -> str:
        """Path or address of the picture that a record calls `image`."""
        if s3.is_url(image):
            return image
        return f"{self.root.rstrip('/')}/{image}" if s3.is_url(self.root) else str(Path(self.root, image))
