"""Evaluations on a real Ray cluster: the same report as in one process, whoever dies on the way."""

import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.evaluate import _Worker
from ferret_core.checkpoint.bundled import BUNDLED
from ferret_core.checkpoint.revision import revision
from ferret_core.cli import app
from ferret_core.evaluation.benchmark import Item
from ferret_core.evaluation.playground import playground_picture
from tests.processes import FERRET, free_port, wait_until
from tests.ray_cluster import ray_cluster

ROOT = Path(__file__).parents[2]
FILES = ("run.json", "questions.jsonl", "report.md", "report.json", "scores.svg", "gallery.html")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with ray_cluster(tmp_path_factory.mktemp("home")) as cluster:
        cluster.add_node()
        yield cluster


def command(name, output, *arguments):
    return ["eval", name, "--scenes", "4", "--limit", "40", "--batch-size", "1", "--output", str(output), *arguments]


def evaluate_here(*arguments):
    result = CliRunner().invoke(app, command(*arguments))
    assert result.exit_code == 0, result.output


def evaluate_on(cluster, workers, *arguments):
    """The driver, a process of its own."""
    where = "--ray", f"127.0.0.1:{cluster.port}", "--workers", str(workers)
    return subprocess.Popen([*FERRET, *command(*arguments), *where], cwd=ROOT, env=cluster.environment)


def same(a, b):
    for name in FILES:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    rows = [sorted((directory / "predictions.jsonl").read_text().splitlines()) for directory in (a, b)]
    assert rows[0] == rows[1]


@pytest.mark.platform
def test_three_workers_find_what_one_process_finds(cluster, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    driver = evaluate_on(cluster, 3, "roundtrip", there)
    evaluate_here("roundtrip", here)
    assert driver.wait(300) == 0
    same(here, there)
    same(here / "then", there / "then")


@pytest.mark.platform
def test_the_driver_and_a_worker_may_be_killed(cluster, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    rows = there / "predictions.jsonl"

    def asked(more_than):
        return rows.exists() and rows.read_bytes().count(b"\n") > more_than

    driver = evaluate_on(cluster, 1, "robustness", there)
    wait_until(lambda: asked(0), 120)
    driver.kill()
    assert driver.wait(30) == -signal.SIGKILL
    kept = rows.read_bytes().count(b"\n")
    assert 0 < kept < 40

    wait_until(lambda: not cluster.workers("_Worker"), 60)
    driver = evaluate_on(cluster, 1, "robustness", there)
    wait_until(lambda: asked(kept), 120)
    (worker,) = cluster.workers("_Worker")
    worker.kill()
    evaluate_here("robustness", here)
    assert driver.wait(200) == 0
    same(here, there)


@pytest.fixture
def row():
    item = Item(id="0", image="playground/0/0/3d", question="What is it?")
    return {"items": pickle.dumps([item])}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("/nowhere/FERRET-7B", "the checkpoint /nowhere/FERRET-7B is not there; every node must have it at the same path"),
        (str(BUNDLED["playground"]), "is another one: its revision is "),
    ],
)
def test_a_worker_refuses_what_the_driver_has_not(model, message, row):
    worker = _Worker(model, "another", playground_picture, 1, 1)
    outcome = pickle.loads(worker(row)["outcome"])
    assert outcome.startswith("a worker on ")
    assert message in outcome


def test_a_worker_predicts(row):
    worker = _Worker("playground", revision("playground"), playground_picture, 1, 4)
    (prediction,) = pickle.loads(worker(row)["outcome"])
    assert prediction.item.id == "0"
    assert prediction.answer


def asked_on(address, tmp_path):
    arguments = ["eval", "roundtrip", "playground", "--scenes", "1", "--output", str(tmp_path), "--ray", address]
    return CliRunner().invoke(app, arguments).exception


def test_where_there_is_no_cluster(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    error = asked_on(address, tmp_path)
    assert isinstance(error, ConnectionError)
    assert f"--ray {address}: no Ray cluster answers there" in str(error)
    assert "must be HOST:PORT; run this on a node" in str(asked_on("ray://127.0.0.1:1", tmp_path))


def test_where_there_is_no_ray(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "cluster.evaluate")
    monkeypatch.setitem(sys.modules, "ray", None)
    error = asked_on("auto", tmp_path)
    assert isinstance(error, RuntimeError)
    assert "--ray needs Ray: pip install 'ferret-platform[train]'" in str(error)
