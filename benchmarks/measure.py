"""What benchmarks share: interleaved timing, and result files that name the hardware."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def compare(candidates: dict[str, Callable[[], Any]], rounds: int = 5, device: str = "cpu") -> dict[str, float]:
    """Median seconds of each candidate. They take turns, so that a busy machine is busy for all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for i in range(rounds + 1):
        for name, run in candidates.items():
            started = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            if i:  # the first round warms up
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def hardware(device: str = "cpu") -> dict[str, Any]:
    """What a result was measured on."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), model)
    facts = {"cpu": model, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def write_result(name: str, values: dict[str, Any]) -> Path:
    """Writes `results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(values, indent=1) + "\n")
    return path
