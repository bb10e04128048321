"""What tests of training share: settings with changes, losses of a run, weights of a model."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file
from torch import Tensor

from ferret_core.training.config import TrainConfig, from_values


def changed(values: dict, **changes: Any) -> dict:
    """A copy of settings with others; `data__turns=3` is one of a group."""
    values = copy.deepcopy(values)
    for key, value in changes.items():
        *groups, name = key.split("__")
        inner = values
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[name] = value
    return values


def settings(values: dict, **changes: Any) -> TrainConfig:
    """The configuration that they are."""
    return from_values(TrainConfig, changed(values, **changes))


def command(values: dict, file: Path, **changes: Any) -> list[str]:
    """`ferret train` with these settings."""
    file.write_text(yaml.safe_dump(changed(values, **changes)))
    return [sys.executable, "-m", "ferret_core.cli", "train", "--config", str(file)]


def run(values: dict, file: Path, **changes: Any) -> subprocess.CompletedProcess[str]:
    """`ferret train` in processes of its own, as many as it says; raises if it fails."""
    done = subprocess.run(
        command(values, file, **changes), capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def losses(directory: Path | str) -> dict[int, float]:
    """The loss of each step; every step is told once."""
    lines = [json.loads(line) for line in (Path(directory) / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert len(steps) == len(set(steps))
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def weights(model: Path | str) -> dict[str, Tensor]:
    """A model's weights."""
    return load_file(Path(model) / "model.safetensors")


def difference(a: dict[Any, Any], b: dict[Any, Any]) -> float:
    """The largest difference of numbers or tensors of the same names."""
    assert a.keys() == b.keys()
    return max(float(abs(a[key] - b[key]).max()) if isinstance(a[key], Tensor) else abs(a[key] - b[key]) for key in a)
