"""The platform on one machine: start it, stop it, look at it.

`platform()` runs Ray, Ray Serve and the application as children of this process, and leaves none of them behind. While it
runs, `state_file()` tells other processes where it is.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

from services.settings import GRPC_PORT, HTTP_PORT, RAY_ENVIRONMENT, PlatformSettings, ferret_home

APPLICATION = "ferret"


@dataclass(frozen=True, slots=True)
class PlatformState:
    """Where a running platform is."""

    pid: int
    grpc_port: int
    http_port: int
    ray_address: str
    ray_token: str
    started: float


def state_file() -> Path:
    """Of this user's platform."""
    return ferret_home() / "platform.json"


def read_state() -> PlatformState | None:
    """The running platform, or None."""
    try:
        state = PlatformState(**json.loads(state_file().read_text()))
        with _lock():
            return None  # left behind by one that was killed
    except RuntimeError:
        return state
    except (FileNotFoundError, ValueError, TypeError):
        return None


@contextmanager
def _lock() -> Iterator[None]:
    """Held by a platform as long as it runs, and let go by the system however it ends.

    Raises `RuntimeError` if a platform holds it.
    """
    ferret_home().mkdir(mode=0o700, parents=True, exist_ok=True)
    with (ferret_home() / "platform.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError("a platform is already up, or on its way; stop it with `ferret down`") from None
        yield


@contextmanager
def platform(
    settings: PlatformSettings,
    *,
    host: str = "127.0.0.1",
    grpc_port: int = GRPC_PORT,
    http_port: int = HTTP_PORT,
    log: Callable[[str], None] = lambda line: None,
) -> Iterator[None]:
    """A local platform, up inside the `with` block.

    Args:
        settings: of the application.
        host: address to listen on for HTTP; gRPC listens on all of this machine's.
        grpc_port: of `FerretService`.
        http_port: of Serve's HTTP proxy.
        log: takes lines about the progress of starting and stopping.

    Raises:
        RuntimeError: a platform is already up, a port is taken, or the application did not start.
    """
    with _lock(), TemporaryDirectory(prefix="ferret-", ignore_cleanup_errors=True) as directory:
        state_file().unlink(missing_ok=True)  # of one that was killed
        for name, port in (("--port", grpc_port), ("--http-port", http_port)):
            check_free(name, port)
        _set_ray_environment(os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32))
        log("starting Ray")
        import ray  # after the environment is set, and only where a platform is really started
        from ray import serve
        from ray.serve.config import HTTPOptions, gRPCOptions

        from services.app import GRPC_SERVICERS, build

        try:
            context = ray.init(
                address="local",
                include_dashboard=False,
                logging_level="WARNING",
                log_to_driver=False,
                object_store_memory=256 * 2**20,
                _temp_dir=directory,
            )
            logging.getLogger("ray.serve").setLevel(logging.WARNING)
            log("starting Ray Serve")
            serve.start(
                http_options=HTTPOptions(host=host, port=http_port),
                grpc_options=gRPCOptions(port=grpc_port, grpc_servicer_functions=GRPC_SERVICERS),
            )
            log(f"loading {', '.join(settings.models)}")
            serve.run(build(settings), name=APPLICATION, logging_config={"enable_access_log": False})
            _write_state(
                PlatformState(
                    pid=os.getpid(),
                    grpc_port=grpc_port,
                    http_port=http_port,
                    ray_address=context.address_info["gcs_address"],
                    ray_token=os.environ["RAY_AUTH_TOKEN"],
                    started=time.time(),
                )
            )
            yield
        finally:
            log("stopping")
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # Ray reports actors it ends itself as lost
                if ray.is_initialized():
                    with suppress(Exception):
                        serve.shutdown()
                ray.shutdown()
            state_file().unlink(missing_ok=True)


def serve_until_stopped(running: AbstractContextManager, ready: Callable[[], Any]) -> None:
    """Brings a platform up, calls `ready`, and takes it down on SIGINT or SIGTERM, also while it is still starting."""

    def stop(number: int, frame: FrameType | None) -> None:
        listen(signal.SIG_IGN)  # one is enough: stopping must not be cut short
        raise KeyboardInterrupt

    def listen(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, handler)

    listen(stop)
    with suppress(KeyboardInterrupt), running:
        listen(stop)  # again: Ray has put its own handler of SIGTERM in place
        ready()
        while True:
            signal.pause()


def stop_platform(timeout: float = 60.0) -> bool:
    """Stops this user's platform; False if none was up. Raises `TimeoutError` if it does not end in time."""
    state = read_state()
    if state is None:
        return False
    os.kill(state.pid, signal.SIGINT)
    deadline = time.monotonic() + timeout
    while read_state() is not None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the platform (process {state.pid}) did not end within {timeout:.0f} s")
        time.sleep(0.2)
    return True


def deployments(state: PlatformState) -> dict[str, dict[str, Any]]:
    """Status and replicas by deployment of a running platform, asked of Ray Serve itself."""
    _set_ray_environment(state.ray_token)
    import ray
    from ray import serve

    ray.init(address=state.ray_address, logging_level="ERROR", log_to_driver=False)
    try:
        application = serve.status().applications[APPLICATION]
        return {
            name: {"status": deployment.status.value, "replicas": dict(deployment.replica_states)}
            for name, deployment in application.deployments.items()
        }
    finally:
        ray.shutdown()


def _set_ray_environment(token: str) -> None:
    """Before Ray is imported. Only who knows the token can reach the cluster."""
    for name, value in {**RAY_ENVIRONMENT, "RAY_AUTH_TOKEN": token}.items():
        os.environ.setdefault(name, value)


def _write_state(state: PlatformState) -> None:
    """Readable by this user alone: it holds the token."""
    path = state_file()
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(json.dumps(asdict(state)))


def check_free(name: str, port: int) -> None:
    """Raises `RuntimeError` if a port is taken, naming the option that sets it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise RuntimeError(f"port {port} is taken; choose another with {name}") from None
