"""The platform on one machine: start it, and stop it.

`platform()` runs Ray, Ray Serve and the application as children of this process, and leaves none of them behind. While it
runs, `read_state()` tells other processes where it is.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

from ferret_core.disk import ferret_home
from services.listening import TLSPort
from services.platform_state import PlatformState, is_locked, lock, read_state, state_file, write_state
from services.settings import GRPC_PORT, HTTP_PORT, METRICS_PORT, RAY_ENVIRONMENT, PlatformSettings
from services.tracing import serve_environment

APPLICATION = "ferret"


@contextmanager
def platform(
    settings: PlatformSettings,
    *,
    host: str = "127.0.0.1",
    grpc_port: int = GRPC_PORT,
    http_port: int = HTTP_PORT,
    metrics_port: int = METRICS_PORT,
    tls: TLSPort | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Iterator[None]:
    """A local platform, up inside the `with` block.

    Args:
        settings: of the application.
        host: address to listen on for HTTP; gRPC listens on all of this machine's, see `PlatformSettings.remote_calls`.
        grpc_port: of `FerretService`.
        http_port: of Serve's HTTP proxy.
        metrics_port: where Prometheus reads metrics.
        tls: where to listen for gRPC with TLS as well; HTTP is then HTTPS.
        log: takes lines about the progress of starting and stopping.

    Raises:
        RuntimeError: a platform is already up, a port is taken, or the application did not start.
    """
    with lock(), TemporaryDirectory(prefix="ferret-", ignore_cleanup_errors=True) as directory:
        state_file().unlink(missing_ok=True)  # of one that was killed
        for name, port in _ports(grpc_port, http_port, metrics_port, tls):
            check_free(name, port)
        os.environ.update(tls.to_environment() if tls else {})
        set_ray_environment(os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32))
        log("starting Ray")
        import ray  # after the environment is set, and only where a platform is really started
        from ray import serve
        from ray.serve.config import HTTPOptions, gRPCOptions

        from services.app import GRPC_SERVICERS, build
        from services.stores import check_servers

        check_servers(settings.stores)
        try:
            context = ray.init(
                address="local",
                include_dashboard=False,
                logging_level="WARNING",
                log_to_driver=False,
                object_store_memory=256 * 2**20,
                _metrics_export_port=metrics_port,
                _temp_dir=directory,
            )
            logging.getLogger("ray.serve").setLevel(logging.WARNING)
            log("starting Ray Serve")
            serve.start(
                http_options=HTTPOptions(port=http_port, **(tls.http_options() if tls else {"host": host})),
                grpc_options=gRPCOptions(port=grpc_port, grpc_servicer_functions=GRPC_SERVICERS),
            )
            log(f"loading {', '.join(settings.models)}")
            serve.run(build(settings), name=APPLICATION, logging_config={"encoding": "JSON", "logs_dir": str(_new_logs())})
            write_state(
                PlatformState(
                    pid=os.getpid(),
                    grpc_port=grpc_port,
                    http_port=http_port,
                    metrics_port=metrics_port,
                    tls=tls is not None,
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


def _ports(grpc_port: int, http_port: int, metrics_port: int, tls: TLSPort | None) -> list[tuple[str, int]]:
    ports = [("--port", grpc_port), ("--http-port", http_port), ("--metrics-port", metrics_port)]
    return [*ports, ("--tls-port", tls.port)] if tls else ports


def logs() -> Path:
    """Where the deployments of this user's platform log: JSON lines, with request ids, without what users say."""
    return ferret_home() / "logs"


def _new_logs() -> Path:
    """Empty; those of the run before are kept beside it."""
    before = logs().with_name("logs.before")
    shutil.rmtree(before, ignore_errors=True)
    with suppress(FileNotFoundError):
        logs().rename(before)
    logs().mkdir(mode=0o700, parents=True)
    return logs()


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
    while is_locked():  # longer than it tells of itself: the next could not start
        if time.monotonic() > deadline:
            raise TimeoutError(f"the platform (process {state.pid}) did not end within {timeout:.0f} s")
        time.sleep(0.2)
    return True


def set_ray_environment(token: str) -> None:
    """Before Ray is imported. Only who knows the token can reach the cluster."""
    tracing = serve_environment(dict(os.environ))
    for name, value in {**RAY_ENVIRONMENT, **tracing}.items():
        os.environ.setdefault(name, value)
    os.environ["RAY_AUTH_TOKEN"] = token


def check_free(name: str, port: int) -> None:
    """Raises `RuntimeError` if a port is taken, naming the option that sets it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise RuntimeError(f"port {port} is taken; choose another with {name}") from None
