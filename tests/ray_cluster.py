"""A real Ray cluster for tests. Each node is a `ray start`, as on a machine of its own; all ends with the last of them."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
from ray.job_submission import JobSubmissionClient

from services.errors import AN_INCIDENT
from tests.processes import assert_none_left, free_port, processes_of

RAY = [sys.executable, "-m", "ray.scripts.scripts"]


class RayCluster:
    """A cluster whose nodes have one CPU each; `environment` is for whoever talks to it."""

    def __init__(self, home: Path, environment: Mapping[str, str]) -> None:
        self.home, self.port = home, free_port()
        self.address = f"http://127.0.0.1:{free_port()}"
        scripts = str(Path(sys.executable).parent)  # a job says `python`
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))} | {
            "FERRET_HOME": str(home),
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_metrics_report_interval_ms": "500",
            "RAY_health_check_period_ms": "1000",  # a lost node is missed within seconds
            **environment,
        }
        self._nodes: list[psutil.Process] = []
        self.metrics_ports: list[int] = []
        self.agent_ports: list[int] = []
        self._sessions = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets lie there: the path must be short
        self.jobs: JobSubmissionClient

    def start(self) -> None:
        """Starts the head and one more node."""
        dashboard = ["--dashboard-host", "127.0.0.1", "--dashboard-port", self.address.rpartition(":")[2]]
        ports = ["--port", str(self.port), "--ray-client-server-port", str(free_port())]
        self._start("--head", *ports, *dashboard)
        token = self.environment["RAY_AUTH_TOKEN"]
        self.jobs = JobSubmissionClient(self.address, headers={"Authorization": f"Bearer {token}"})
        self.add_node()

    def add_node(self) -> None:
        """One more node, of one CPU."""
        self._nodes.append(self._start("--address", f"127.0.0.1:{self.port}"))

    def lose_node(self) -> None:
        """The last one dies, and all that runs there."""
        _kill(_family([self._nodes[-1]]))

    def heal(self) -> None:
        """Adds nodes for those that were lost, and forgets what the last job had reserved, else an elastic one waits for it."""
        alive = [node for node in self._nodes if node in processes_of(self.home)]
        lost, self._nodes = len(self._nodes) - len(alive), alive
        for _ in range(lost):
            self.add_node()
        _kill([process for process in processes_of(self.home) if _title(process) == "ray::_AutoscalingCoordinatorActor"])

    def _start(self, *arguments: str) -> psutil.Process:
        """The raylet of a new node, without which the rest of it ends."""
        self.metrics_ports.append(free_port())
        self.agent_ports.append(free_port())
        ports = ["--metrics-export-port", str(self.metrics_ports[-1])]
        ports += ["--dashboard-agent-listen-port", str(self.agent_ports[-1])]
        ports += ["--min-worker-port", "0", "--max-worker-port", "0"]
        directory = tempfile.mkdtemp(dir=self._sessions)  # as another machine's, so that nodes unpack jobs for themselves
        ports += ["--temp-dir", directory]
        resources = ["--num-cpus", "1", "--object-store-memory", str(100 << 20)]
        before = {process.pid for process in processes_of(self.home)}
        command = [*RAY, "start", *arguments, *ports, *resources, "--disable-usage-stats"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        (raylet,) = [p for p in processes_of(self.home) if p.pid not in before and p.name() == "raylet"]
        return raylet

    def metrics(self) -> str:
        """What Prometheus would read at the nodes."""
        pages = []
        for port in self.metrics_ports:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
                pages.append(page.read().decode())
        return "\n".join(pages)

    def incidents(self) -> str:
        """What the logs of Serve have of errors: how each different traceback ends."""
        files = [path for path in self._sessions.rglob("logs/serve/*.log") if not path.is_symlink()]
        entries = [json.loads(line) for path in files for line in path.read_text().splitlines() if line[:1] + line[-1:] == "{}"]
        errors = sorted((e for e in entries if e["levelname"] == "ERROR"), key=lambda entry: entry["asctime"])
        ends = ((entry.get("exc_text") or entry["message"]).strip().splitlines()[-1] for entry in errors)
        return "\n".join(dict.fromkeys(end for end in ends if AN_INCIDENT not in end))  # those of the proxy name others

    def workers(self, name: str = "RayTrainWorker") -> list[psutil.Process]:
        """The training's workers, or other actors with `name` in their title."""
        return [process for process in processes_of(self.home) if name in _title(process)]

    def close(self) -> None:
        """Ends all processes of the cluster."""
        everything = _family(processes_of(self.home))
        _kill(everything)
        _, alive = psutil.wait_procs(everything, timeout=30)
        assert not alive
        assert_none_left(self.home)
        shutil.rmtree(self._sessions, ignore_errors=True)


def _title(process: psutil.Process) -> str:
    """What Ray calls a process; nothing if it has just ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return "".join(process.cmdline()[:1])
    return ""


def _family(processes: list[psutil.Process]) -> list[psutil.Process]:
    """They and their descendants, among them Ray's agents, which write their names over their environment."""
    family = set(processes)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            family.update(process.children(recursive=True))
    return list(family)


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@contextlib.contextmanager
def ray_cluster(home: Path, environment: Mapping[str, str] | None = None) -> Iterator[RayCluster]:
    """A cluster of two nodes with variables of their own, until the end of the block."""
    cluster = RayCluster(home, environment or {})
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()
