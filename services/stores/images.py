"""Encoded images by content id."""

from __future__ import annotations

import re

from ferret_core.images import image_id
from services.stores.objects import ObjectStore


class ImageStore:
    """Images in a directory or a bucket."""

    def __init__(self, objects: ObjectStore) -> None:
        self.objects = objects

    def put(self, data: bytes) -> str:
        """Stores an image; returns its id. Idempotent."""
        identity = image_id(data)
        self.objects.add(_name(identity), data)
        return identity

    def get(self, identity: str) -> bytes | None:
        """The image with an id, or None if it is not, or no longer, here."""
        name = _name(identity)
        return self.objects.get(name) if name else None

    def remove(self, identity: str) -> None:
        """Removes the image with an id, if there is one."""
        name = _name(identity)
        if name:
            self.objects.remove(name)


def _name(identity: str) -> str:
    """Only hexadecimal digits reach a store, whatever a client sent; empty if there is anything else."""
    digest = identity.removeprefix("sha256:")
    return digest if re.fullmatch("[0-9a-f]{64}", digest) else ""
