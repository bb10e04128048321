"""Builders on a real Ray cluster: the same shards, byte for byte."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.downloads import make_coco
from tests.processes import FERRET

ROOT = Path(__file__).parents[2]


@pytest.mark.platform
def test_ray_makes_the_same_bytes(tmp_path):
    make_coco(tmp_path / "in", images=range(1, 30))
    here = [*FERRET, "data", "build"]
    there = [sys.executable, "-m", "cluster.build_data"]
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": "/tmp"}
    environment.pop("RAY_ADDRESS", None)  # a cluster of its own
    for command, output, workers in ((here, "here", "1"), (there, "there", "2")):
        arguments = ["coco", str(tmp_path / "in"), "--output", str(tmp_path / output), "--shards", "5", "--workers", workers]
        subprocess.run([*command, *arguments], cwd=ROOT, env=environment, check=True, timeout=300)
    shards = {path.name: path.read_bytes() for path in (tmp_path / "here").glob("shard-*.jsonl")}
    assert len(shards) == 5
    assert {path.name: path.read_bytes() for path in (tmp_path / "there").glob("shard-*.jsonl")} == shards
