"""`ferret deploy` on a bare cluster of two nodes, and what stands around it: Envoy with TLS, Prometheus, the dashboard."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import subprocess
import sysconfig
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import ray
import yaml
from opentelemetry.sdk.trace import TracerProvider

from ferret_core.data.playground import playground_example
from ferret_core.data.playground.demo import DEMO_PICTURE, DEMO_POINT
from ferret_core.geometry import Point
from ferret_core.predictor import FerretPredictor
from services.client import AsyncFerretClient, FerretClient, InvalidRequestError, NotFoundError, ServerError
from services.load_generator import Load, Outcome, playground_questions, run
from services.settings import GRPC_PORT, HTTP_PORT, RAY_ENVIRONMENT
from tests.processes import FERRET, free_port, processes_of
from tests.ray_cluster import RayCluster, ray_cluster
from tests.trace_collector import Collector, trace_collector

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(sysconfig.get_path("scripts"))
PATIENCE = 600  # seconds; a busy machine takes minutes to start replicas
QUESTION = "What is [region0]?"

pytestmark = pytest.mark.platform


class Deployed:
    """A cluster, the Serve config for it, `ferret deploy`, and where its spans go."""

    def __init__(self, cluster: RayCluster, directory: Path, collector: Collector) -> None:
        self.cluster, self.file, self.collector = cluster, directory / "serve.yaml", collector
        self.grpc_port, self.http_port = free_port(), free_port()

    def config(self, change: Callable[[dict], Any] = lambda settings: None) -> dict[str, Any]:
        """cluster/serve/cpu.yaml with ports that are free, at the head alone: both nodes have the same address here."""
        config = yaml.safe_load((ROOT / "cluster/serve/cpu.yaml").read_text())
        config["proxy_location"] = "HeadOnly"
        config["http_options"]["port"], config["grpc_options"]["port"] = self.http_port, self.grpc_port
        change(config["applications"][0]["args"])
        return config

    def deploy(self, config: dict[str, Any], **environment: str) -> subprocess.CompletedProcess:
        self.file.write_text(yaml.safe_dump(config))
        command = [*FERRET, "deploy", "-f", str(self.file), "--address", self.cluster.address, "--timeout", str(PATIENCE)]
        return subprocess.run(command, env=self.cluster.environment | environment, capture_output=True, text=True)

    def replicas(self) -> set[psutil.Process]:
        """Of all deployments."""
        return {process for process in processes_of(self.cluster.home) if "ServeReplica" in " ".join(process.cmdline())}

    def ask(self, **client: Any) -> str:
        with FerretClient(**{"server": f"localhost:{self.grpc_port}"} | client) as ferret:
            ferret.set_image(DEMO_PICTURE)
            return ferret.ask(QUESTION, [Point(*DEMO_POINT)]).text


@pytest.fixture(scope="module")
def answer() -> str:
    predictor = FerretPredictor.from_pretrained("playground", device="cpu")
    predictor.set_image(DEMO_PICTURE)
    return predictor.ask(QUESTION, [Point(*DEMO_POINT)]).text


def tracing(collector: Collector) -> dict[str, str]:
    """What docs/observability.md tells to set on every node."""
    (block,) = re.findall(r"```sh\n((?:export .*\n)+)```", (ROOT / "docs/observability.md").read_text())
    variables = dict(line.removeprefix("export ").split("=", 1) for line in block.splitlines())
    return variables | {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint}


@pytest.fixture(scope="module")
def deployed(tmp_path_factory) -> Iterator[Deployed]:
    home = tmp_path_factory.mktemp("home")
    with trace_collector() as collector, ray_cluster(home, RAY_ENVIRONMENT | tracing(collector)) as cluster:
        deployed = Deployed(cluster, home, collector)
        result = deployed.deploy(deployed.config())
        assert result.returncode == 0, result.stderr
        assert re.search(r"^\[ *\d+\.\d s\] building the application$", result.stderr, re.M)
        assert "gateway 1; playground-image-encoder 1; playground-llm-decoder 1; playground-region-sampler 1" in result.stderr
        assert "open to everyone who can reach the cluster" in result.stderr
        assert result.stderr.endswith(f"running on {cluster.address}\n")
        yield deployed


def test_it_answers_as_the_predictor_does(deployed, answer):
    assert deployed.ask() == answer


def test_one_trace_joins_client_and_stages(deployed):
    picture = playground_example("test", random.randrange(1000)).image  # one of which nothing is kept
    with (
        FerretClient(f"localhost:{deployed.grpc_port}") as client,
        TracerProvider().get_tracer("test").start_as_current_span("user") as span,
    ):
        client.set_image(picture)
        client.ask(QUESTION, [Point(9, 9)])
    deployed.collector.assert_joined(span.get_span_context().trace_id)


def test_the_health_checks_of_compose_need_no_token(deployed):
    """Theirs and KubeRay's; the port is that of compose but for this test's own."""
    compose = (ROOT / "docker-compose.yml").read_text()
    head, agent = deployed.cluster.address.rpartition(":")[2], deployed.cluster.agent_ports[1]
    for there, here in (("8265/api/gcs_healthz", head), ("52365/api/local_raylet_healthz", agent)):
        assert f"wget -q -O - http://localhost:{there} | grep -q success" in compose
        with urllib.request.urlopen(f"http://127.0.0.1:{here}/{there.partition('/')[2]}", timeout=30) as page:
            assert b"success" in page.read()


@contextmanager
def envoy(deployed: Deployed, directory: Path) -> Iterator[tuple[int, int, bytes]]:
    """cluster/proxy/envoy.yaml in a real Envoy; its ports for clients and for metrics, and the certificate."""
    certificate, key = directory / "tls.crt", directory / "tls.key"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    made += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True)
    https, metrics, admin = free_port(), free_port(), free_port()
    text = (ROOT / "cluster/proxy/envoy.yaml").read_text()
    for written, here in {
        "/run/secrets/tls_certificate": str(certificate),
        "/run/secrets/tls_key": str(key),
        "port_value: 8443": f"port_value: {https}",
        "port_value: 9901": f"port_value: {admin}",
        "port_value: 9902": f"port_value: {metrics}",
        "address: head, ": "address: localhost, ",  # `worker` is a name that nobody knows: a node that is away
        f"port_value: {GRPC_PORT}": f"port_value: {deployed.grpc_port}",
        f"port_value: {HTTP_PORT}": f"port_value: {deployed.http_port}",
    }.items():
        assert written in text
        text = text.replace(written, here)
    (directory / "envoy.yaml").write_text(text)
    command = [SCRIPTS / "envoy", "--config-path", directory / "envoy.yaml", "--log-level", "warning", "--base-id", str(admin)]
    with subprocess.Popen(command, stderr=(directory / "envoy.log").open("w")) as process:
        try:
            compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
            *_, healthy = compose["services"]["envoy"]["healthcheck"]["test"]
            healthy = healthy.replace("/9902", f"/{metrics}")
            deadline = time.monotonic() + 60
            while subprocess.run(["bash", "-c", healthy], capture_output=True).returncode:
                assert process.poll() is None, (directory / "envoy.log").read_text()
                assert time.monotonic() < deadline, (directory / "envoy.log").read_text()
                time.sleep(0.5)
            yield https, metrics, certificate.read_bytes()
        finally:
            process.terminate()


def patiently(done: Callable[[], Any], seconds: float = 120) -> Any:
    """What `done` gives as soon as it neither fails nor gives nothing."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if result := done():
                return result
        except (AssertionError, OSError, ServerError):
            if time.monotonic() > deadline:
                raise
        assert time.monotonic() < deadline
        time.sleep(1)


def test_envoy_and_the_dashboard(deployed, answer, tmp_path):
    with envoy(deployed, tmp_path) as (https, metrics, certificate):
        trusting = {"server": f"localhost:{https}", "credentials": grpc.ssl_channel_credentials(certificate)}
        assert patiently(lambda: deployed.ask(**trusting)) == answer
        with FerretClient(**trusting) as client, pytest.raises(NotFoundError, match="image_id: no image"):
            client.get_image("sha256:" + "0" * 64)
        with pytest.raises(ServerError), FerretClient(f"localhost:{https}", timeout=20) as client:  # without TLS
            client.models()

        def head_of(path: str) -> str:
            fetch = ["curl", "-sk", "-o", "/dev/null", "-D", "-", f"https://localhost:{https}{path}"]
            return subprocess.run(fetch, capture_output=True, text=True).stdout

        assert patiently(lambda: "x-envoy-upstream-service-time" in head_of("/v1/nothing"))  # whatever it says, Serve says it
        assert head_of("/").startswith("HTTP/2 503")  # no page was started
        for path in ("/quitquitquit", "/config_dump"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"http://127.0.0.1:{metrics}{path}", timeout=30)
        assert_every_panel_shows_something(deployed, metrics, tmp_path)


UNSEEN_HERE = {"ray_node_gpus_utilization", "ray_node_gram_used"}
"""Metrics of the dashboard that this machine, without a GPU, does not have; the names are looked up in Ray's source."""


def assert_every_panel_shows_something(deployed: Deployed, envoy_metrics: int, directory: Path) -> None:
    """In a real Prometheus with cluster/monitoring/prometheus.yaml."""
    config = yaml.safe_load((ROOT / "cluster/monitoring/prometheus.yaml").read_text())
    config["global"]["scrape_interval"] = "1s"
    nodes, proxy = config["scrape_configs"]
    del nodes["dns_sd_configs"]
    nodes["static_configs"] = [{"targets": [f"127.0.0.1:{port}" for port in deployed.cluster.metrics_ports]}]
    proxy["static_configs"] = [{"targets": [f"127.0.0.1:{envoy_metrics}"]}]
    (directory / "prometheus.yaml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={directory / 'prometheus.yaml'}", f"--storage.tsdb.path={directory / 'data'}"]
    command += [f"--web.listen-address={address}"]

    def series(query: str) -> list:
        query = urllib.parse.urlencode({"query": query.replace("$__rate_interval", "30s")})
        with urllib.request.urlopen(f"http://{address}/api/v1/query?{query}", timeout=30) as page:
            return json.load(page)["data"]["result"]

    panels = json.loads((ROOT / "cluster/monitoring/grafana/ferret.json").read_text())["panels"]
    queries = {target["expr"] for panel in panels for target in panel.get("targets", ())}
    with subprocess.Popen(command, stderr=(directory / "prometheus.log").open("w")) as process:
        try:
            for query in sorted(queries):
                if not any(name in query for name in UNSEEN_HERE):
                    assert patiently(lambda query=query: series(query)), query
        finally:
            process.terminate()
    source = "".join(path.read_text() for path in (Path(ray.__file__).parent / "dashboard").rglob("*.py"))
    for name in UNSEEN_HERE:
        assert f'"{name.removeprefix("ray_")}"' in source
        assert any(name in query for query in queries)


def test_what_fails_leaves_what_serves(deployed, answer):
    """A checkpoint that is nowhere: the new replicas do not start, the old ones answer."""
    result = deployed.deploy(deployed.config(lambda settings: settings["models"]["playground"].update(path="/nowhere")))
    assert result.returncode == 1
    assert "playground: other weights under the same name" in result.stderr
    assert "DEPLOY_FAILED; what was deployed before still serves" in result.stderr
    assert "'/nowhere'" in result.stderr
    assert "Traceback" not in result.stderr
    assert deployed.ask() == answer


def test_a_change_comes_without_a_pause(deployed, answer):
    """After the failure, too. Every replica is replaced; those who ask all the time are always answered."""

    def change(settings: dict) -> None:
        settings["max_regions"] = 1
        settings["models"]["playground"]["dtype"] = "float32"  # of every stage; on many CPUs another than before

    outcomes: list[Outcome] = []

    def connect() -> AsyncFerretClient:
        return AsyncFerretClient(f"localhost:{deployed.grpc_port}")

    async def under_load() -> subprocess.CompletedProcess:
        load = Load(users=3, seconds=PATIENCE, warmup=0)
        questions = [question for question in playground_questions(100) if len(question.regions) == 1]
        asking = asyncio.create_task(run(load, questions, connect, outcomes.append))
        result = await asyncio.to_thread(deployed.deploy, deployed.config(change))
        afterwards = len(outcomes) + 2 * load.users
        while len(outcomes) < afterwards and not asking.done():
            await asyncio.sleep(0.1)
        asking.cancel()
        return result

    before = deployed.replicas()
    result = asyncio.run(under_load())
    assert result.returncode == 0, result.stderr
    print(f"{len(outcomes)} answers, the slowest within {max(outcome.end - outcome.due for outcome in outcomes):.1f} s")
    errors = {f"{outcome.error}: {outcome.message}" for outcome in outcomes if outcome.error}
    assert not errors, deployed.cluster.incidents()
    assert len(outcomes) > 10
    assert len(before) >= 4
    patiently(lambda: not before & deployed.replicas())
    assert deployed.ask() == answer
    with FerretClient(f"localhost:{deployed.grpc_port}") as client:
        client.set_image(DEMO_PICTURE)
        with pytest.raises(InvalidRequestError, match="at most 1 in all, got 2"):
            client.ask("What is [region0]?", [Point(*DEMO_POINT)] * 2)


def test_what_a_running_serve_cannot_change(deployed, answer):
    config = deployed.config()
    config["grpc_options"]["port"] = free_port()
    result = deployed.deploy(config)
    assert result.returncode == 1
    assert re.match(rf"ferret: grpc_options.port: is {deployed.grpc_port} on http://.* `serve shutdown", result.stderr)
    assert deployed.ask() == answer


def test_a_cluster_that_wants_a_token_or_is_not_there(deployed):
    result = deployed.deploy(deployed.config(), RAY_AUTH_MODE="disabled")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert f"ferret: {deployed.cluster.address} wants a token: set RAY_AUTH_MODE=token" in result.stderr
    nowhere = f"http://127.0.0.1:{free_port()}"
    command = [*FERRET, "deploy", "-f", str(deployed.file), "--address", nowhere]
    result = subprocess.run(command, env=os.environ, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (1, f"ferret: Failed to connect to Ray at address: {nowhere}.\n")
