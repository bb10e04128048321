"""Training on a real Ray cluster of two nodes: whatever happens to it, the loss curve is that of a run left alone."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from PIL import Image
from ray.job_submission import JobStatus

from cluster.train import main
from ferret_core.data.files import write_records
from ferret_core.data.records import Record
from ferret_core.geometry import ImageSize
from ferret_core.predictor import FerretPredictor
from ferret_core.prompt import Turn
from ferret_core.training.loop import train
from ferret_core.training.reporting import read_metrics
from tests.object_store import s3_server
from tests.processes import FERRET
from tests.ray_cluster import RayCluster, ray_cluster
from tests.training import changed, difference, losses, settings, weights

ROOT = Path(__file__).parents[2]
SAME = 1e-5
PATIENCE = 600  # seconds; a busy machine takes minutes to start workers

pytestmark = pytest.mark.platform


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[RayCluster]:
    with ray_cluster(tmp_path_factory.mktemp("home")) as cluster:
        yield cluster


@pytest.fixture
def values(run_values) -> dict:
    """A run of two workers that lasts long enough to be disturbed."""
    return run_values | {"strategy": "zero2", "workers": 2, "steps": 60, "eval_steps": 60, "checkpoint": {"steps": 10}}


@pytest.fixture
def expected(values, tmp_path) -> dict[int, float]:
    """The losses of the same run, left alone in one process."""
    train(settings(values, strategy="single", workers=1, output=str(tmp_path / "alone")))
    return losses(tmp_path / "alone")


class Job:
    """A command that follows a run: `ferret train --address`, `ray job submit` or the driver itself."""

    def __init__(self, command: list[str], cluster: RayCluster, directory: Path, **environment: str) -> None:
        self.log_file = directory / f"log-{time.monotonic_ns()}"
        with self.log_file.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=cluster.environment | environment, stdout=log, stderr=subprocess.STDOUT
            )

    @property
    def log(self) -> str:
        """What was said so far."""
        return self.log_file.read_text()

    def wait(self) -> int:
        """Its exit code."""
        return self.process.wait(timeout=PATIENCE)

    def until(self, happened: Callable[[], Any], what: str) -> None:
        """Waits for something to happen while the run goes on."""
        deadline = time.monotonic() + PATIENCE
        while not happened():
            assert self.process.poll() is None, f"it ended before {what}:\n{self.log[-5000:]}"
            assert time.monotonic() < deadline, f"no {what}:\n{self.log[-5000:]}"
            time.sleep(0.02)


@pytest.fixture
def start(cluster, tmp_path) -> Iterator[Callable[..., Job]]:
    """Starts `ferret train --address` with settings, or another command; ends it with the test."""
    cluster.heal()
    started: list[Job] = []

    def start(values: dict, *command: str, **changes: Any) -> Job:
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(changed(values, **changes)))
        command = command or (*FERRET, "train", "--address", cluster.address)
        bucket = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        started.append(Job([*command, "--config", str(file)], cluster, tmp_path, **bucket))
        return started[-1]

    yield start
    for job in started:
        if job.process.poll() is None:
            job.process.kill()
            job.process.wait()
    for job in cluster.jobs.list_jobs():
        if job.submission_id and not job.status.is_terminal():
            cluster.jobs.stop_job(job.submission_id)


def steps_of(directory: Path) -> int:
    """How far a run has come."""
    return max((int(line["step"]) for line in read_metrics(directory / "metrics.jsonl")), default=0)


def complete(directory: Path, step: int) -> bool:
    """Whether a checkpoint of two workers is there."""
    return len(list((directory / "checkpoints" / f"step-{step:08d}").glob("[!.]*"))) == 3


def kill_worker(cluster: RayCluster, rank: int = -1) -> None:
    """As if its process ran out of memory."""
    workers = cluster.workers()
    assert len(workers) == 2
    workers[rank].kill()


def test_a_submitted_job_trains_the_model(cluster, values, expected, start, tmp_path):
    """The command of the README: plan, progress with the time that is left, metrics, and a model that answers."""
    submit = ["-m", "ray.scripts.scripts", "job", "submit", "--address", cluster.address, "--working-dir", "."]
    job = start(values, sys.executable, *submit, "--", "python", "-m", "cluster.train")
    gauges = []

    def read_gauges() -> bool:
        gauges[:] = re.findall(r"^ray_ferret_train_(\w+)\{.*\} (\S+)$", cluster.metrics(), re.MULTILINE)
        return {"loss", "tokens_per_second"} <= {name for name, _ in gauges}

    job.until(read_gauges, "gauges at Ray's metrics endpoints")
    assert all(float(value) > 0 for name, value in gauges if name in ("loss", "tokens_per_second"))
    assert job.wait() == 0, job.log[-5000:]
    log = job.log
    assert log.index("parameters") < log.index(" 1/60 ")
    assert len(re.findall(r" \d+/60  loss [\d.]+ .*ETA \d\d:\d\d", log)) == 60
    assert f"finished: {values['output']}/model" in log
    assert difference(losses(values["output"]), expected) < SAME
    assert difference(weights(f"{values['output']}/model"), weights(tmp_path / "alone" / "model")) < SAME
    predictor = FerretPredictor.from_pretrained(f"{values['output']}/model")
    predictor.set_image(Image.new("RGB", (64, 64), "teal"))
    assert predictor.ask("What is this?", max_new_tokens=4).usage.completion_tokens


def test_a_worker_killed_twice(cluster, values, expected, start):
    """Both go on from the last checkpoint, and each step is told once."""
    run = Path(values["output"])
    job = start(values)
    job.until(lambda: complete(run, 10) and steps_of(run) >= 15, "step 15")
    kill_worker(cluster, 0)
    job.until(lambda: complete(run, 30) and steps_of(run) >= 35, "step 35")
    kill_worker(cluster, 1)
    assert job.wait() == 0, job.log[-5000:]
    first, second = sorted({int(step) for step in re.findall(r"goes on from step (\d+)", job.log)})
    assert 10 <= first < 30 <= second
    assert difference(losses(run), expected) < SAME


def test_a_node_is_lost_and_the_run_stopped_and_resumed(cluster, values, expected, start):
    """Two workers, one without the other, Ctrl-C, two again (no fewer: an elastic run may begin before it knows of both)."""
    run = Path(values["output"])
    job = start(values, min_workers=1, eval_steps=1, eval_samples=80)  # slow, so that Ctrl-C comes before the end
    job.until(lambda: complete(run, 10) and steps_of(run) >= 12, "step 12")
    cluster.lose_node()
    job.until(lambda: "goes on from step" in job.log and steps_of(run) >= 20, "step 20 of a second start")
    assert "size 1" in job.log
    job.process.send_signal(signal.SIGINT)
    assert job.wait() == 143, job.log[-5000:]
    (stopped_at,) = map(
        int, re.findall(r"^stopped: stopped at step (\d+); the same command goes on from there$", job.log, re.MULTILINE)
    )
    assert 20 <= stopped_at < 60
    assert ": STOPPED: " in job.log
    assert job.log.count(" 20/60  loss ") == 1  # what was shown before Ctrl-C is not shown again
    cluster.heal()
    job = start(values)
    assert job.wait() == 0, job.log[-5000:]
    assert f"goes on from step {stopped_at}" in job.log
    assert "size 2" in job.log
    assert difference(losses(run), expected) < SAME


def test_a_bucket(cluster, values, expected, start, tmp_path):
    """Everything is in the bucket; a killed worker goes on from there; while it cannot be reached, training goes on."""
    with s3_server(tmp_path / "s3") as bucket:
        run = bucket / "run"
        job = start(values, output=f"s3://{bucket.name}/run")
        job.until(lambda: complete(run, 10), "a checkpoint in the bucket")
        kill_worker(cluster, 1)
        job.until(lambda: complete(run, 20), "another one")
        (server,) = [process for process in psutil.Process().children() if process.name() == "rclone"]
        command = server.cmdline()
        server.kill()
        job.until(lambda: "was NOT saved" in job.log, "a complaint")
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as again:
            assert job.wait() == 0, job.log[-5000:]
            again.terminate()
        assert re.search(r"goes on from step [12]0", job.log)
        assert re.search(r"checkpoint of step \d+ was NOT saved: OSError: s3://", job.log)
        assert complete(run, 60)
        assert any(line.get("checkpoint_failed") for line in read_metrics(run / "metrics.jsonl"))
        assert difference(losses(run), expected) < SAME
        FerretPredictor.from_pretrained(str(run / "model"))


def test_a_bad_record_ends_the_job_at_once(cluster, values, start, tmp_path):
    """The cause is in the last line and in the job's status; nothing is tried again."""
    Image.new("RGB", (64, 48), "teal").save(tmp_path / "a.png")
    records = [
        Record(id=str(i), image="missing.png" if i == 9 else "a.png", size=ImageSize(64, 48), turns=(Turn("What?", "That."),))
        for i in range(10)
    ]
    write_records(tmp_path / "bad.jsonl", records)
    data = {"sources": [{"path": str(tmp_path / "bad.jsonl")}], "workers": 1}
    job = start(values, task="instruct", data=data)
    assert job.wait() == 1
    cause = f"failed: {tmp_path}/bad.jsonl: line 10 (bad): record 9: image {tmp_path}/missing.png is missing"
    assert re.search(rf"^{re.escape(cause)} \(bad record 1; data.skip_bad is 0\)$", job.log, re.MULTILINE)
    status = next(each for each in cluster.jobs.list_jobs() if each.submission_id and each.submission_id in job.log)
    assert status.status == JobStatus.FAILED
    assert cause in status.message.splitlines()[-1]
    assert job.log.count("Started training worker group") == 1


def test_ctrl_c_of_the_driver_saves(cluster, values, start):
    """Which is part of no job here: `python -m cluster.train` on a machine of the cluster."""
    run = Path(values["output"])
    job = start(values, "env", f"RAY_ADDRESS=127.0.0.1:{cluster.port}", sys.executable, "-m", "cluster.train", eval_steps=1)
    job.until(lambda: steps_of(run) >= 5, "step 5")
    job.process.send_signal(signal.SIGINT)
    assert job.wait() == 143, job.log[-5000:]
    stopped_at = int(re.findall(r"stopped: stopped at step (\d+)", job.log)[-1])
    assert 5 <= stopped_at == steps_of(run) < 60
    assert complete(run, stopped_at)


def test_what_cannot_run_is_refused_before_anything_is_started(values, start, tmp_path, monkeypatch, capsys):
    """In a job, an output that would vanish with it; and anywhere, a model that is not there."""
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(values))
    assert main(["--config", str(file), "init=/nowhere"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("failed: init: no checkpoint at /nowhere")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert main(["--config", str(file), "output=runs/mine"]) == 1
    assert "failed: output: runs/mine would lie in the job's own directory" in capsys.readouterr().err
    job = start(values, output="runs/mine")
    assert job.wait() == 1
    assert "output: runs/mine would lie in the job's own directory" in job.log
    assert "submitted" not in job.log
