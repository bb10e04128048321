"""`ferret eval --server`: a running platform answers as a model in this process does, and says which one it has."""

import asyncio
import subprocess
from pathlib import Path

import pytest

from ferret_core.checkpoint.revision import revision
from services.client import AsyncFerretClient
from tests.processes import FERRET

pytestmark = pytest.mark.platform


def predictions(directory: Path) -> list[str]:
    return sorted((directory / "predictions.jsonl").read_text().splitlines())


def test_a_platform_is_evaluated_as_its_checkpoint_is(platform, tmp_path):
    for output, where in (("here", []), ("there", ["--server", platform.server])):
        command = [*FERRET, "eval", "roundtrip", "--scenes", "4", "--batch-size", "4", "--output", str(tmp_path / output)]
        subprocess.run([*command, *where], env=platform.environment, check=True, timeout=300)
    here, there = tmp_path / "here", tmp_path / "there"
    for part in ("", "then"):
        assert predictions(here / part) == predictions(there / part)
        for name in ("run.json", "report.json", "report.md", "gallery.html"):
            assert (here / part / name).read_bytes() == (there / part / name).read_bytes()


def test_a_platform_tells_its_revisions(platform, client):
    async def revisions():
        async with AsyncFerretClient(platform.server) as asked:
            return await asked.revisions()

    assert client.revisions() == asyncio.run(revisions()) == {"playground": revision("playground")}


def test_a_model_that_is_not_served_is_named(platform, tmp_path):
    arguments = ["eval", "roundtrip", "--model", "13B", "--server", platform.server, "--output", str(tmp_path)]
    failed = subprocess.run([*FERRET, *arguments], env=platform.environment, capture_output=True, text=True, timeout=120)
    assert failed.returncode == 1
    assert f"--model: {platform.server} serves no '13B'; it serves playground" in failed.stderr
