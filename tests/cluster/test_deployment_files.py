"""What deploys the platform, held to the tools that read it and to the one schema behind it. Needs no daemon and no cluster."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import compose
import promql_parser
import pytest
import yaml

from ferret_core.s3 import connect, split_url
from services.app import build
from services.deploy import is_open, load_serve_config, serve_config
from services.settings import (
    GRPC_PORT,
    HTTP_PORT,
    RAY_ENVIRONMENT,
    UI_PORT,
    DeploymentSettings,
    PlatformSettings,
    StoreSettings,
)
from services.tracing import ENDPOINT, serve_environment
from tests.cluster.kuberay import RayJob, RayService, check_kubernetes
from tests.processes import free_port, wait_until

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
SCRIPTS = Path(sysconfig.get_path("scripts"))
SERVE_CONFIGS = sorted({*CLUSTER.glob("serve/*.yaml")} - {CLUSTER / "serve/kustomization.yaml"})
OVERLAYS = ("cpu", "a100", "h100")
ENVIRONMENT = dict(line.split("=", 1) for line in (CLUSTER / "serve/ray.env").read_text().splitlines() if line[:1] != "#")
DRAIN_SECONDS = DeploymentSettings().drain_seconds
"""Who ends a replica must leave it that long."""


def home_of_images() -> str:
    """FERRET_HOME of both images, where the stores keep what waits for a server that is away."""
    text = (CLUSTER / "Dockerfile").read_text()
    (home,) = set(re.findall(r"^ENV .*\bFERRET_HOME=(\S+)", text, re.M))
    assert text.count(f"FERRET_HOME={home}") == text.count(f"--owner ferret --mode 700 {home}") == 2
    return home


def settings_of(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())["applications"][0]["args"]


def test_one_environment():
    assert ENVIRONMENT == RAY_ENVIRONMENT


@pytest.mark.parametrize("path", SERVE_CONFIGS, ids=lambda path: path.name)
def test_serve_configs_are_what_the_settings_give(path):
    config = load_serve_config(path)
    assert config == serve_config(settings_of(path))
    build(PlatformSettings(**settings_of(path)))  # Serve's own checks of each deployment's options


@pytest.mark.parametrize(("name", "gpus"), [("cpu", 0), ("one-gpu", 1), ("8xa100", 8)])
def test_replicas_fit_on_the_gpus(name, gpus):
    """All of them, under full load; of one GPU a replica has a whole or a share, never parts of two."""
    settings = PlatformSettings(**settings_of(CLUSTER / f"serve/{name}.yaml"))
    shares = [
        stage.num_gpus
        for model in settings.models.values()
        for stage in (model.image_encoder, model.region_sampler, model.llm_decoder)
        for _ in range(stage.max_replicas)
    ]
    whole = sum(share == 1 for share in shares)
    assert all(0 <= share <= 1 for share in shares)
    assert whole + sum(share for share in shares if share < 1) <= gpus + 1e-9


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.update(grpc_option={}), "Serve has no setting grpc_option"),
        (lambda c: c["grpc_options"].update(port="x"), "grpc_options.port: must be a valid integer"),
        (lambda c: c["grpc_options"].update(grpc_servicer_functions=[]), "grpc_options.grpc_servicer_functions: must be ["),
        (lambda c: c["applications"][0].update(import_path="a:b"), "applications.0.import_path: must be 'services.app:build'"),
        (lambda c: c["applications"].append(c["applications"][0] | {"name": "b", "route_prefix": "/b"}), "must be one"),
        (lambda c: c["applications"][0]["args"].update(modles={}), "0.args.modles: no such setting; there are models, "),
        (lambda c: c["applications"][0]["args"]["models"]["playground"].pop("path"), "playground.path: must be given"),
    ],
)
def test_a_wrong_serve_config_is_told_where(change, says, tmp_path):
    config = yaml.safe_load((CLUSTER / "serve/cpu.yaml").read_text())
    change(config)
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        load_serve_config(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "settings", "environment", "opened"),
    [
        ("0.0.0.0", {}, {}, True),
        (None, {"remote_calls": "none"}, {}, True),  # Serve's own default is every interface
        ("127.0.0.1", {}, {}, True),  # gRPC still is
        ("127.0.0.1", {"remote_calls": "none"}, {}, False),
        ("0.0.0.0", {"tokens_file": "/etc/ferret/tokens.yaml"}, {}, False),
        ("0.0.0.0", {}, {"FERRET_TOKENS_FILE": "/etc/ferret/tokens.yaml"}, False),
    ],
)
def test_whether_everybody_may_ask(host, settings, environment, opened, monkeypatch):
    monkeypatch.delenv("FERRET_TOKENS_FILE", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = serve_config(settings_of(CLUSTER / "serve/cpu.yaml") | settings)
    config["http_options"] = {"host": host} if host else {}
    assert is_open(config) == opened


# ---- docker-compose.yml


def example_environment() -> dict[str, str]:
    """.env.example, filled in."""
    lines = (line for line in (ROOT / ".env.example").read_text().splitlines() if line and line[0] != "#")
    return {name: value or f"secret-{name}" for name, value in (line.split("=", 1) for line in lines)}


def compose_config(**environment: str) -> subprocess.CompletedProcess:
    command = [Path(compose.__file__).parent / "docker-compose", "--file", ROOT / "docker-compose.yml", "config"]
    return subprocess.run([*command, "--format", "json"], env={"PATH": os.environ["PATH"]} | environment, capture_output=True)


@pytest.fixture(params=["cpu", "gpu"])
def services(request) -> dict[str, Any]:
    result = compose_config(**example_environment() | {"COMPOSE_PROFILES": request.param})
    assert result.returncode == 0, result.stderr
    services = json.loads(result.stdout)["services"]
    assert ("worker" in services, "worker-gpu" in services) == (request.param == "cpu", request.param == "gpu")
    return services


def test_compose(services):
    everything = {"head", "deploy", "ui", "envoy", "valkey", "s3", "prometheus", "grafana"}
    assert everything < services.keys()
    for name, service in services.items():
        assert re.search(r":(cpu|cuda|v?\d+\.\d+(\.\d+)?(-\w+)?)$", service["image"]), f"{name}: {service['image']}"
        assert service["cap_drop"] == ["ALL"], name
        assert "healthcheck" in service or name == "deploy", name
        published = [port for port in service.get("ports", []) if port.get("host_ip") != "127.0.0.1"]
        assert bool(published) == (name == "envoy"), name
    nodes = [services["head"], services.get("worker") or services["worker-gpu"]]
    for node in nodes:
        minutes, seconds = re.fullmatch(r"(?:(\d+)m)?(\d+)s", node["stop_grace_period"]).groups(default="0")
        assert 60 * int(minutes) + int(seconds) > DRAIN_SECONDS
        assert ENVIRONMENT.items() <= node["environment"].items()
        stores = {"FERRET_REDIS_URL", "FERRET_REDIS_PASSWORD", "FERRET_S3_URL", "AWS_SECRET_ACCESS_KEY"}
        assert {*stores, "FERRET_TOKENS_FILE", "RAY_AUTH_TOKEN"} < node["environment"].keys()
        assert ("volume", "spool", home_of_images()) in [
            (mount["type"], mount["source"], mount["target"]) for mount in node["volumes"]
        ]
    assert (ROOT / "cluster/serve" / Path(services["deploy"]["command"][3]).name) in SERVE_CONFIGS
    assert f"--port {UI_PORT}" in " ".join(services["ui"]["command"])


def test_compose_traces_where_it_is_told_to():
    told = {ENDPOINT: "http://collector:4318"}
    for given in ({}, told, told | {"OTEL_TRACES_SAMPLER_ARG": "0.1"}):
        result = compose_config(**example_environment() | given)
        assert result.returncode == 0, result.stderr
        off = {ENDPOINT: "", "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": "", "RAY_SERVE_TRACING_SAMPLING_RATIO": "1"}
        expected = off | {ENDPOINT: given.get(ENDPOINT, "")} | serve_environment(given)
        for name in ("head", "worker"):
            assert expected.items() <= json.loads(result.stdout)["services"][name]["environment"].items()


def test_compose_wants_every_secret():
    filled = example_environment()
    for name in filled:
        if "secret-" in filled[name] and name != "FERRET_TOKEN":
            result = compose_config(**filled | {name: ""})
            assert result.returncode != 0, name
            assert f"{name} is missing a value: set it in .env".encode() in result.stderr


def test_the_s3_server_of_compose(services, tmp_path, monkeypatch):
    """The same program with the same command: a bucket of the platform's, for those with the keys alone."""
    service = services["s3"]
    keys = {name: service["environment"][name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    ports = {name: free_port() for name in ("s3.port", "master.port", "volume.port", "filer.port", "admin.port")}
    arguments = [*service["command"], f"-dir={tmp_path}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    arguments += [f"-{name}={port}" for name, port in ports.items()]
    arguments += [f"-{name}.grpc={free_port()}" for name in ports]
    bucket, _ = split_url(services["head"]["environment"]["FERRET_S3_URL"])
    for name, value in (keys | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3.port']}"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    with subprocess.Popen([SCRIPTS / "weed", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            health = f"http://127.0.0.1:{ports['s3.port']}/healthz"
            retry = ["--retry", "60", "--retry-delay", "1", "--retry-all-errors"]
            subprocess.run(["curl", "-fs", *retry, health], check=True)
            buckets = wait_until(lambda: connect().list_buckets(), 60)  # it is well a little before it has made its bucket
            assert [found.name for found in buckets] == [bucket]
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
            with pytest.raises(Exception, match="SignatureDoesNotMatch"):
                connect().list_buckets()
        finally:
            server.terminate()


# ---- images, proxy, monitoring


def test_dockerfile():
    subprocess.run([SCRIPTS / "hadolint", CLUSTER / "Dockerfile"], check=True)
    stages = re.findall(r"^FROM \S+ AS (\S+)", (CLUSTER / "Dockerfile").read_text(), re.M)
    assert {"cpu", "cuda"} < set(stages)
    extras = re.findall(r"ferret-platform\[([\w,]+)\]", (CLUSTER / "Dockerfile").read_text())
    assert len(extras) == 2
    assert all({"serve", "stores", "tracing"} < set(each.split(",")) for each in extras)


def test_prometheus_and_dashboard():
    subprocess.run(
        ["promtool", "check", "config", CLUSTER / "monitoring/prometheus.yaml"], check=True, stdout=subprocess.DEVNULL
    )
    (source,) = yaml.safe_load((CLUSTER / "monitoring/grafana/datasource.yaml").read_text())["datasources"]
    dashboard = json.loads((CLUSTER / "monitoring/grafana/ferret.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in panels:
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == source["uid"]
            promql_parser.parse(target["expr"].replace("$__rate_interval", "1m"))


def test_proxy_leads_to_the_platform():
    """That Envoy takes the file, and what it does with it, is seen in test_deploy.py."""
    config = yaml.safe_load((CLUSTER / "proxy/envoy.yaml").read_text())
    addresses = {
        cluster["name"]: {
            tuple(endpoint["endpoint"]["address"]["socket_address"].values())
            for endpoints in cluster["load_assignment"]["endpoints"]
            for endpoint in endpoints["lb_endpoints"]
        }
        for cluster in config["static_resources"]["clusters"]
    }
    assert addresses["grpc"] == {("head", GRPC_PORT), ("worker", GRPC_PORT)}
    assert addresses["http"] == {("head", HTTP_PORT), ("worker", HTTP_PORT)}
    assert addresses["page"] == {("ui", UI_PORT)}


# ---- cluster/kubernetes


def manifests(directory: str) -> list[dict[str, Any]]:
    command = [SCRIPTS / "kubectl", "kustomize", CLUSTER / "kubernetes" / directory]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return list(yaml.safe_load_all(built.stdout))


@pytest.mark.parametrize("directory", [*OVERLAYS, "training"])
def test_manifests_are_what_kubernetes_takes(directory):
    for manifest in manifests(directory):
        match manifest["kind"]:
            case "RayService":
                RayService.model_validate(manifest)
            case "RayJob":
                RayJob.model_validate(manifest)
            case _:
                check_kubernetes(manifest)


@pytest.mark.parametrize(("overlay", "serve"), [("cpu", "cpu"), ("a100", "8xa100"), ("h100", "8xa100")])
def test_the_ray_service(overlay, serve):
    found = {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in manifests(overlay)}
    spec = found["RayService", "ferret"]["spec"]
    assert spec["serveConfigV2"] == (CLUSTER / f"serve/{serve}.yaml").read_text()
    assert [port["port"] for port in spec["serveService"]["spec"]["ports"]] == [HTTP_PORT, GRPC_PORT]
    assert found["ConfigMap", "ray-environment"]["data"] == RAY_ENVIRONMENT
    cluster = spec["rayClusterConfig"]
    groups = cluster["workerGroupSpecs"]
    assert [group["groupName"] for group in groups] == (["cpu"] if overlay == "cpu" else ["cpu", "gpu"])
    for group in [cluster["headGroupSpec"], *groups]:
        pod = group["template"]["spec"]
        if group in groups:  # the head has no replicas
            assert pod["terminationGracePeriodSeconds"] > DRAIN_SECONDS
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert container["envFrom"][0]["configMapRef"]["name"] == "ray-environment"
        assert {port["containerPort"] for port in container["ports"]} == {HTTP_PORT, GRPC_PORT, 8080}
        image = "ferret-platform:cuda" if group.get("groupName") == "gpu" else "ferret-platform:cpu"
        assert container["image"] == image
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        room = mounts[home_of_images()]["emptyDir"]["sizeLimit"]
        assert int(room.removesuffix("Gi")) * 2**30 > 5 * StoreSettings().spool_bytes  # of each kind that may wait
    if overlay != "cpu":
        affinity = groups[1]["template"]["spec"]["affinity"]["nodeAffinity"]
        ((term,),) = [
            one["matchExpressions"] for one in affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        ]
        assert all(overlay.upper() in gpu for gpu in term["values"])


def test_gpu_workers_hold_the_replicas():
    """Those that are always up have a GPU each or share one, without a pod being asked for; all fit before the limit."""
    model = PlatformSettings(**settings_of(CLUSTER / "serve/8xa100.yaml")).models["ferret-7b"]
    (service,) = [manifest for manifest in manifests("a100") if manifest["kind"] == "RayService"]
    group = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][1]
    stages = (model.image_encoder, model.region_sampler, model.llm_decoder)
    assert sum(stage.num_gpus * stage.min_replicas for stage in stages) <= group["minReplicas"]
    update = -(-model.llm_decoder.max_surge_percent * model.llm_decoder.max_replicas // 100)
    assert sum(stage.num_gpus * stage.max_replicas for stage in stages) + update <= group["maxReplicas"]
