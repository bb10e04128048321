"""Checkpoints: complete or not there, kept where they should be, and never the end of a run."""

import json
import resource
import shutil
import signal
import subprocess

import pytest
import torch

from ferret_core.training.checkpoints import Checkpoints
from ferret_core.training.config import CheckpointConfig
from ferret_core.training.loop import train
from ferret_core.training.storage import DirectoryStorage, Storage
from ferret_core.training.workers import Workers
from tests.object_store import BUCKET, s3_server
from tests.training import command, difference, losses, settings, weights

ALONE = Workers(0, 1, torch.device("cpu"))


class Kept:
    """A strategy's state, and no more."""

    def __init__(self, value):
        self.trained = ["a.weight", "b.weight"]
        self.value = value

    def state(self, name):
        return {"master": torch.full((3,), self.value), "exp_avg": torch.zeros(3)}


def steps(directory):
    return sorted(int(path.name.removeprefix("step-")) for path in (directory / "checkpoints").iterdir())


def test_the_newest_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(
        DirectoryStorage(tmp_path), tmp_path / "scratch", CheckpointConfig(keep_last=2, keep_best=1), ALONE
    )
    for step, loss in ((1, 3.0), (2, 1.0), (3, None), (4, 2.0), (5, None)):
        checkpoints.save(Kept(float(step)), step, {"validation_loss": loss})
        checkpoints.wait()
    assert steps(tmp_path) == [2, 4, 5]
    assert checkpoints.latest() == 5
    assert checkpoints.load(4)["b.weight"]["master"].tolist() == [4.0, 4.0, 4.0]


def test_parts_of_an_earlier_attempt_are_not_mixed_in(tmp_path):
    """Two workers left a part of step 10; one worker alone saved it again."""
    storage, scratch, config = DirectoryStorage(tmp_path), tmp_path / "scratch", CheckpointConfig()
    stale = Checkpoints(storage, scratch, config, Workers(1, 2, torch.device("cpu")))
    stale._write({"a|master": torch.zeros(1)}, _state(10, 2), None)
    alone = Checkpoints(storage, scratch, config, ALONE)
    alone._write({"a|master": torch.ones(1)}, _state(10, 1), None)
    assert alone.load(10)["a"]["master"] == 1


def test_what_lacks_a_worker_does_not_count(tmp_path):
    """The second of two workers died before its part was written."""
    config = CheckpointConfig()
    Checkpoints(DirectoryStorage(tmp_path), tmp_path / "scratch", config, ALONE)._write(
        {"a|master": torch.ones(1)}, _state(1, 1), None
    )
    first = Checkpoints(DirectoryStorage(tmp_path), tmp_path / "scratch", config, Workers(0, 2, torch.device("cpu")))
    first._write({"a|master": torch.ones(1)}, _state(2, 2), None)
    found = Checkpoints(DirectoryStorage(tmp_path), tmp_path / "scratch", config, ALONE)
    assert found.latest() == 1
    second = Checkpoints(DirectoryStorage(tmp_path), tmp_path / "scratch", config, Workers(1, 2, torch.device("cpu")))
    second._write({"b|master": torch.ones(1)}, _state(2, 2), None)
    assert found.latest() == 2
    assert found.load(2).keys() == {"a", "b"}


def _state(step, workers):
    return {"step": step, "workers": workers, "validation_loss": None}


def test_a_full_disk_stops_no_training(run_values, tmp_path):
    """No file may grow beyond 100 kB: checkpoints fail, loudly; with room again the run goes on from what there is."""
    file = tmp_path / "run.yaml"
    arguments = command(run_values | {"checkpoint": {"steps": 2}}, file)
    done = subprocess.run(
        arguments, capture_output=True, text=True, timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )  # fmt: skip
    assert done.returncode == 1  # the last step could not be saved, nor the model
    assert "checkpoint of step 2 was NOT saved" in done.stderr
    assert "File too large" in done.stderr
    assert len(losses(tmp_path / "run")) == 6
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any(line.get("checkpoint_failed") for line in lines)
    shutil.rmtree(tmp_path / "run" / "checkpoints", ignore_errors=True)
    whole = train(settings(run_values, output=str(tmp_path / "whole")))
    again = train(settings(run_values))
    assert difference(weights(whole), weights(again)) == 0


def test_a_killed_run_goes_on_from_its_last_checkpoint(run_values, tmp_path):
    """SIGKILL: nothing could be saved. The same command repeats the steps since, and tells each once."""
    whole = train(settings(run_values, output=str(tmp_path / "whole"), steps=40, eval_steps=40))
    changes = {"steps": 40, "eval_steps": 40, "checkpoint__steps": 3}
    process = subprocess.Popen(
        command(run_values, tmp_path / "run.yaml", **changes), stderr=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stderr
    for line in process.stderr:
        if " 8/40 " in line:
            process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert max(steps(tmp_path / "run")) < 40
    model = train(settings(run_values, **changes))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert difference(weights(model), weights(whole)) == 0


def test_a_run_in_a_bucket(run_values, tmp_path):
    """Everything that a run leaves is there, and is enough to go on from."""
    whole = train(settings(run_values, output=str(tmp_path / "whole"), steps=8))
    with s3_server(tmp_path):
        values = run_values | {"output": f"s3://{BUCKET}/runs/one", "steps": 8}

        class StopAfter:
            steps = 0

            def __call__(self):
                self.steps += 1
                return self.steps == 3

        with pytest.raises(Exception, match="stopped at step 3"):
            train(settings(values), StopAfter())
        assert train(settings(values)) == f"s3://{BUCKET}/runs/one/model"
        storage = Storage.at(values["output"], tmp_path / "scratch")
        names = storage.names("")
        assert {"config.yaml", "metrics.jsonl", "curves.png", "model/config.json", "model/model.safetensors"} <= set(names)
        for name in ("metrics.jsonl", "model/model.safetensors"):
            (tmp_path / "fetched" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "fetched" / name).write_bytes(storage.get(name).read_bytes())
        assert storage.get("model/nothing") is None
    assert losses(tmp_path / "fetched") == losses(tmp_path / "whole")
    assert difference(weights(tmp_path / "fetched" / "model"), weights(whole)) == 0


def test_a_bucket_that_is_gone_is_told(run_values, tmp_path):
    with s3_server(tmp_path):
        pass
    with pytest.raises((OSError, ValueError), match=r"s3://|AWS_"):
        train(settings(run_values, output=f"s3://{BUCKET}/runs/two"))
