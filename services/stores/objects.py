"""Where bytes are kept by name: what images and logs ask of a directory or of a bucket."""

from __future__ import annotations

from abc import ABC, abstractmethod


class ObjectStore(ABC):
    """Objects by name. Two objects of one name are equal, so that writing one again, or twice at once, does no harm.

    Where a server is asked and cannot be reached, methods raise `UnavailableError`.
    """

    @abstractmethod
    def add(self, name: str, data: bytes) -> None:
        """Keeps an object."""

    @abstractmethod
    def get(self, name: str) -> bytes | None:
        """An object, or None if it is not, or no longer, here."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Removes an object, if there is one."""

    @abstractmethod
    def names(self, prefix: str = "") -> list[str]:
        """What begins with a prefix, as far as the next slash: objects, and folders, which end with one; sorted."""
