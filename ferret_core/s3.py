"""S3 and whatever speaks its protocol (MinIO, Ceph, R2): objects by their address, `s3://BUCKET/KEY`.

Who we are and where to go is read from the environment alone: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN,
AWS_REGION, and AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL for a store that is not Amazon's.
"""

from __future__ import annotations

import io
import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from minio import Minio

SCHEME = "s3://"
_AMAZON = "https://s3.amazonaws.com"
_CONNECTIONS = 16  # that are kept for the next request; more are made as need be


class Patience(NamedTuple):
    """How long a store may take to answer."""

    connect_seconds: float
    read_seconds: float
    retries: int
    backoff_seconds: float


PATIENT = Patience(connect_seconds=10, read_seconds=60, retries=5, backoff_seconds=0.2)  # a job would rather wait than fail
HASTY = Patience(connect_seconds=1, read_seconds=3, retries=1, backoff_seconds=0)  # somebody waits for an answer


def is_url(path: object) -> bool:
    """Whether a path is an address in S3."""
    return str(path).startswith(SCHEME)


def split_url(url: str) -> tuple[str, str]:
    """`s3://BUCKET/KEY` as (bucket, key); the key may be empty. Raises `ValueError` for anything else."""
    bucket, _, key = url.removeprefix(SCHEME).partition("/")
    if not is_url(url) or not bucket:
        raise ValueError(f"{url!r}: an address in S3 is s3://BUCKET/KEY")
    return bucket, key


def connect(patience: Patience = PATIENT) -> Minio:
    """A client of the store that the environment names; one for each process, whose threads may share it.

    Raises:
        ValueError: a variable is missing or malformed.
        RuntimeError: minio is not installed.
    """
    environment = os.environ
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL") or _AMAZON
    if urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).netloc:
        raise ValueError(f"AWS_ENDPOINT_URL: must be http://HOST:PORT or https://HOST:PORT, got {endpoint!r}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        if not environment.get(name):
            raise ValueError(f"{name}: S3 at {endpoint} needs it in the environment")
    return _client(
        os.getpid(),
        patience,
        endpoint,
        environment["AWS_ACCESS_KEY_ID"],
        environment["AWS_SECRET_ACCESS_KEY"],
        environment.get("AWS_SESSION_TOKEN"),
        environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or "us-east-1",
    )


def read_object(url: str, patience: Patience = PATIENT) -> bytes:
    """An object's bytes. Raises `FileNotFoundError` if there is none, `OSError` if the store cannot be asked."""
    bucket, key = split_url(url)
    client = connect(patience)
    from urllib3.exceptions import ProtocolError

    attempts = itertools.count(1)
    while True:
        try:
            with errors(url):
                response = client.get_object(bucket, key)
                try:
                    return response.data
                finally:
                    response.close()
                    response.release_conn()
        except OSError as error:
            # The client asks again for itself, except where an answer has begun and breaks off.
            if not isinstance(error.__cause__, ProtocolError) or next(attempts) > patience.retries:
                raise
            time.sleep(patience.backoff_seconds)


def write_object(url: str, data: bytes, patience: Patience = PATIENT) -> None:
    """Makes an object, or makes it anew. Raises `OSError` if that fails."""
    bucket, key = split_url(url)
    client = connect(patience)
    with errors(url):
        client.put_object(bucket, key, io.BytesIO(data), len(data))


def has_object(url: str, patience: Patience = PATIENT) -> bool:
    """Whether there is an object. Raises `OSError` if the store cannot be asked."""
    bucket, key = split_url(url)
    client = connect(patience)
    try:
        with errors(url):
            client.stat_object(bucket, key)
    except FileNotFoundError:
        return False
    return True


def remove_object(url: str, patience: Patience = PATIENT) -> None:
    """Removes an object, if there is one. Raises `OSError` if that fails."""
    bucket, key = split_url(url)
    client = connect(patience)
    with errors(url):
        client.remove_object(bucket, key)


def list_objects(url: str, patience: Patience = PATIENT) -> list[str]:
    """The keys that begin as `url` does, as far as the next slash: those of objects, and folders, which end with a slash.

    Raises `OSError` if the store cannot be asked.
    """
    bucket, key = split_url(url)
    client = connect(patience)
    with errors(url):
        return sorted(str(each.object_name) for each in client.list_objects(bucket, key))


def has_bucket(url: str, patience: Patience = PATIENT) -> bool:
    """Whether the bucket of an address is there. Raises `OSError` if the store cannot be asked."""
    bucket, _ = split_url(url)
    client = connect(patience)
    with errors(url):
        return client.bucket_exists(bucket)


@contextmanager
def errors(url: str) -> Iterator[None]:
    """The client's errors, of many kinds, as an `OSError` that names the object: `FileNotFoundError` if there is none."""
    from minio.error import MinioException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (MinioException, HTTPError) as error:
        # Looked for in the text, because minio knows no code in an answer of type text/xml, which some stores send.
        if "NoSuchKey" in str(error):
            raise FileNotFoundError(f"{url}: no such object") from error
        raise OSError(f"{url}: {error}") from error


@lru_cache(maxsize=8)
def _client(
    pid: int, patience: Patience, endpoint: str, access_key: str, secret_key: str, token: str | None, region: str
) -> Minio:
    """`pid` is part of the key because connections must not be shared with a forked process."""
    try:
        import urllib3
        from minio import Minio
    except ModuleNotFoundError as error:
        raise RuntimeError(f"S3 needs {error.name}: pip install 'ferret-platform[stores]'") from error
    url = urlsplit(endpoint)
    return Minio(
        endpoint=url.netloc,
        access_key=access_key,
        secret_key=secret_key,
        session_token=token,
        secure=url.scheme == "https",
        region=region,
        # minio's own would wait five minutes for a store that is not there.
        http_client=urllib3.PoolManager(
            maxsize=_CONNECTIONS,
            timeout=urllib3.Timeout(connect=patience.connect_seconds, read=patience.read_seconds),
            retries=urllib3.Retry(
                total=patience.retries, backoff_factor=patience.backoff_seconds, status_forcelist=(500, 502, 503, 504)
            ),
        ),
    )
