"""A real S3 server for tests: rclone's, over a directory whose sub-directories are its buckets."""

import contextlib
import os
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from tests.processes import free_port

BUCKET = "ferret"
_KEY, _SECRET = "ferret-key", "ferret-secret"  # pragma: allowlist secret


class S3Server:
    """Serves `directory`, at one address for as long as it is there, with a bucket named `BUCKET`."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.bucket = Path(directory), Path(directory) / BUCKET
        self.bucket.mkdir(parents=True, exist_ok=True)
        self.endpoint = f"http://127.0.0.1:{free_port()}"
        self.environment = {
            "AWS_ACCESS_KEY_ID": _KEY,
            "AWS_SECRET_ACCESS_KEY": _SECRET,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
        }
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        """Until `stop`; also again."""
        rclone, address = Path(sysconfig.get_path("scripts")) / "rclone", self.endpoint.removeprefix("http://")
        command = [rclone, "serve", "s3", self.directory, "--addr", address, "--auth-key", f"{_KEY},{_SECRET}"]
        command += ["--dir-cache-time", "10ms"]  # what a test writes there is in the bucket at once; with 0 the server may spin
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _wait(self.endpoint, self._process)

    def stop(self) -> None:
        """At once, as a machine that loses its power."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def s3_server(directory: Path) -> Iterator[Path]:
    """An `S3Server` and the AWS_ variables of the environment that lead there, which child processes inherit, until the end.
    Yields the bucket's directory: what lies there is in the bucket."""
    server = S3Server(directory)
    with mock.patch.dict(os.environ, server.environment):
        os.environ.pop("AWS_ENDPOINT_URL_S3", None)  # it would go before the other
        try:
            server.start()
            yield server.bucket
        finally:
            server.stop()


def _wait(endpoint: str, server: subprocess.Popen, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while server.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(endpoint, timeout=1)
            return
        except urllib.error.HTTPError:  # it answers, if only that we may not
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"rclone serve s3 did not start (exit code {server.poll()})")
