"""Where this user's platform runs: what it tells the other processes of this machine, for as long as it is up."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ferret_core.disk import ferret_home


@dataclass(frozen=True, slots=True)
class PlatformState:
    """Where a running platform is."""

    pid: int
    grpc_port: int
    http_port: int
    metrics_port: int
    tls: bool
    ray_address: str
    ray_token: str
    started: float


def http_address(host: str, port: int, tls: bool) -> str:
    """Where OpenAI's clients find it."""
    return f"{'https' if tls else 'http'}://{host}:{port}/v1"


def state_file() -> Path:
    """Of this user's platform."""
    return ferret_home() / "platform.json"


def read_state() -> PlatformState | None:
    """The running platform, or None."""
    try:
        state = PlatformState(**json.loads(state_file().read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return state if is_locked() else None  # left behind by one that was killed


def write_state(state: PlatformState) -> None:
    """Tells other processes of a platform. Readable by this user alone: it holds the token."""
    path = state_file()
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(json.dumps(asdict(state)))


@contextmanager
def lock() -> Iterator[None]:
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


def is_locked() -> bool:
    """Whether a platform holds the lock: one that is up, on its way, or not quite gone."""
    try:
        with lock():
            return False
    except RuntimeError:
        return True
