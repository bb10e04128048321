"""Prompts with their answers, for whatever computes them another way."""

import random

import pytest
import torch

from ferret_core.checkpoint.bundled import checkpoint_path
from ferret_core.model import FerretForConditionalGeneration
from tests.generation import GREEDY


@pytest.fixture(scope="module")
def module_model(playground_processor) -> FerretForConditionalGeneration:
    """A small model whose likeliest tokens stand out: ties are decided by rounding."""
    return FerretForConditionalGeneration.from_pretrained(checkpoint_path("playground"), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def requests(module_model, playground_processor):
    """Prompts about two pictures, with up to three regions, and transformers' answers."""
    model, rng = module_model.model, random.Random(0)
    config, made = module_model.config, []
    with torch.no_grad():
        pictures = [model.encode_images(torch.randn(1, 3, 224, 224, generator=_seeded(i))) for i in range(2)]
        for index in range(10):
            features, count = pictures[index % 2], rng.choice([0, 0, 1, 3])
            points = torch.rand(count, config.sampler_points, 2, generator=_seeded(index))
            regions = torch.cat([model.encode_regions(features, each[None]) for each in points]) if count else None
            words = [rng.randrange(50, 2000) for _ in range(rng.randint(1, 30))]
            ids = [1, 60, 61, 62, *[config.image_token_id] * features.shape[1], *[config.region_token_id] * count, *words]
            embeddings = model.embed_prompt(torch.tensor([ids]), features, regions)
            answer = module_model.generate(inputs_embeds=embeddings, **GREEDY)
            made.append((ids, features, regions, answer[0].tolist()))
    assert len({tuple(answer) for *_, answer in made}) > 6
    return made


def _seeded(seed):
    return torch.Generator().manual_seed(seed)
