"""Fixtures that several rooms share."""

from __future__ import annotations

import os
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
