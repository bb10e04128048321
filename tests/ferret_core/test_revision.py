"""A checkpoint's revision: the same wherever it lies, another once its weights change."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ferret_core.checkpoint.bundled import BUNDLED
from ferret_core.checkpoint.revision import revision


@pytest.fixture
def checkpoint(tmp_path):
    shutil.copytree(BUNDLED["playground"], tmp_path / "copy")
    return tmp_path / "copy"


def test_a_copy_has_the_same(checkpoint):
    assert revision("playground") == revision(str(BUNDLED["playground"])) == revision(str(checkpoint))
    (checkpoint / ".cache").write_text("x")
    assert revision("playground") == revision(str(checkpoint))


def test_another_setting_is_another_revision(checkpoint):
    config = checkpoint / "processor_config.json"
    config.write_text(config.read_text().replace("224", "336", 1) + " ")
    assert revision("playground") != revision(str(checkpoint))


def test_any_tensor_that_was_trained_makes_another_revision(checkpoint):
    """Of files whose headers and sizes are equal, and most of whose bytes are not read."""
    file = checkpoint / "model.safetensors"
    weights, seen = load_file(file), {revision("playground")}
    for name in list(weights):
        changed = weights | {name: weights[name] + torch.rand_like(weights[name])}
        save_file(changed, file, metadata={"format": "pt"})
        seen.add(revision(str(checkpoint)))
    assert len(seen) == len(weights) + 1
