"""A prefix of an S3 bucket, which may be away for a while."""

from __future__ import annotations

from ferret_core import s3
from services.errors import UnavailableError
from services.stores.caches import local_copies
from services.stores.circuit_breaker import CircuitBreaker
from services.stores.directory import Spool
from services.stores.objects import ObjectStore


class Bucket(ObjectStore):
    """Objects under s3://BUCKET/PREFIX/.

    While the store is away, what is written waits in a spool on this machine's disk, where all its replicas see it and where
    it survives them, and is put into the bucket once the store is back. What a replica has used lately it reads from a copy.
    """

    def __init__(self, url: str, spool: Spool, breaker: CircuitBreaker) -> None:
        self.url, self.spool, self.breaker = url.rstrip("/") + "/", spool, breaker
        self._copies = local_copies()
        breaker.write_backs.append(self.write_back)

    def add(self, name: str, data: bytes) -> None:
        try:
            with self.breaker.call():
                if not s3.has_object(self.url + name, s3.HASTY):
                    s3.write_object(self.url + name, data, s3.HASTY)
        except UnavailableError:
            self.spool.add(name, data)
        self._copies.put({name: data})

    def get(self, name: str) -> bytes | None:
        data = self.spool.get(name)
        if data is not None:
            return data
        try:
            with self.breaker.call():
                data = self._read(name)
        except UnavailableError:
            (data,) = self._copies.get([name])
            if data is None:
                raise
            return data
        if data is None:
            self._copies.remove([name])
        else:
            self._copies.put({name: data})
        return data

    def remove(self, name: str) -> None:
        with self.spool.locked(name):  # or it might just be on its way into the bucket
            with self.breaker.call():
                s3.remove_object(self.url + name, s3.HASTY)
            self.spool.remove(name)
        self._copies.remove([name])

    def names(self, prefix: str = "") -> list[str]:
        with self.breaker.call():
            keys = s3.list_objects(self.url + prefix, s3.HASTY)
        _, start = s3.split_url(self.url)
        return sorted({key.removeprefix(start) for key in keys} | set(self.spool.names(prefix)))

    def write_back(self) -> None:
        """Puts into the bucket what waits in the spool. Raises `OSError` if the store is away."""
        for name, data in self.spool.waiting():
            s3.write_object(self.url + name, data, s3.HASTY)
            self.spool.remove(name)

    def _read(self, name: str) -> bytes | None:
        try:
            return s3.read_object(self.url + name, s3.HASTY)
        except FileNotFoundError:
            return None
