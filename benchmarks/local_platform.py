"""A platform to measure, with a home and ports of its own: one that is up goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from services.platform import platform
from services.settings import PlatformSettings

GRPC_PORT, HTTP_PORT, METRICS_PORT = 9100, 8100, 9164


@contextmanager
def serving(settings: dict[str, Any]) -> Iterator[str]:
    """A platform of these values of `PlatformSettings`, and its HOST:PORT, until the end of the block."""
    with (
        TemporaryDirectory() as home,
        mock.patch.dict(os.environ, FERRET_HOME=home),
        platform(
            PlatformSettings.model_validate(settings),
            grpc_port=GRPC_PORT,
            http_port=HTTP_PORT,
            metrics_port=METRICS_PORT,
            log=print,
        ),
    ):
        yield f"localhost:{GRPC_PORT}"
