"""Fixtures that several rooms share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from transformers import LlamaConfig

from ferret_core.checkpoint.bundled import BUNDLED
from ferret_core.model import ConvStemVisionConfig, FerretConfig, FerretForConditionalGeneration, FerretProcessor

settings.register_profile("ferret", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines are noisy
settings.load_profile("ferret")

os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start: threads that wait for each other crawl on a busy machine
torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so would what it starts

OF_PROCESSES = {"e2e", "cluster", "test_readme.py", "test_strategies.py", "test_deepspeed_config.py"}
"""Tests of whole platforms or of several workers: they wait for other processes on a machine that may be busy with anything."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What fails once, in a test of several processes, is tried once more, and the summary says so.

    Not what breaks platforms: a guarantee that holds half of the time is none.
    """
    for item in items:
        parts = item.path.relative_to(Path(__file__).parent).parts
        if OF_PROCESSES.intersection(parts) and "chaos" not in parts:
            item.add_marker(pytest.mark.flaky(reruns=1))


# Recordings of the original implementation; point FERRET_GOLDEN at a larger set to run all of it.
GOLDEN = Path(os.environ.get("FERRET_GOLDEN", Path(__file__).parent / "golden"))


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def original_model() -> FerretForConditionalGeneration:
    """The recorded tiny checkpoint, loaded from the original layout."""
    path = str(GOLDEN / "checkpoints" / "ferret-tiny")
    return FerretForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def original_processor() -> FerretProcessor:
    return FerretProcessor.from_pretrained(str(GOLDEN / "checkpoints" / "ferret-tiny"))


@pytest.fixture(scope="session")
def playground_processor() -> FerretProcessor:
    return FerretProcessor.from_pretrained(str(BUNDLED["playground"]))


@pytest.fixture
def tiny_config(playground_processor: FerretProcessor) -> FerretConfig:
    """A Ferret of a few thousand weights with the playground's tokenizer."""
    tokenizer = playground_processor.tokenizer
    return FerretConfig(
        vision_config=ConvStemVisionConfig(
            hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=16,
            stem_widths=[8, 8, 16, 32], stem_blocks=[0, 0, 1, 0],
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=1024, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        ),
        sampler_points=32,
        sampler_stages=[8, 4],
        sampler_neighbors=4,
        region_token_id=tokenizer.convert_tokens_to_ids("<region_fea>"),
    )  # fmt: skip


@pytest.fixture
def tiny_model(tiny_config: FerretConfig) -> FerretForConditionalGeneration:
    torch.manual_seed(0)
    return FerretForConditionalGeneration(tiny_config).eval()


@pytest.fixture
def tiny_processor(tiny_config: FerretConfig, playground_processor: FerretProcessor) -> FerretProcessor:
    return FerretProcessor.for_config(tiny_config, playground_processor.tokenizer)


@pytest.fixture
def run_values(tiny_config: FerretConfig, tmp_path: Path) -> dict:
    """Settings of a run of a tiny model in the playground."""
    init = tmp_path / "init"
    init.mkdir()
    tiny_config.save_pretrained(init)
    return {
        "output": str(tmp_path / "run"),
        "init": str(init / "config.json"),
        "tokenizer": str(BUNDLED["playground"]),
        "task": "playground",
        "train": ["vision_tower", "projector", "region_encoder", "decoder"],
        "data": {"workers": 0},
        "playground": {"turns": 2},
        "steps": 6,
        "batch_size": 4,
        "micro_batch_size": 2,
        "optimizer": {"learning_rate": 1e-3},
        "eval_samples": 3,
        "eval_steps": 6,
        "log_steps": 1,
        "precision": "fp32",
        "device": "cpu",
    }
