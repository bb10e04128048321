"""Initial weights that save a small model a long search."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ferret_core.geometry import BINS
from ferret_core.model import FerretForConditionalGeneration


def initialize_numbers(model: FerretForConditionalGeneration, tokenizer: object) -> None:
    """Starts the embeddings of the tokens 0..1000 as neighbours of each other, where the tokenizer has such tokens."""
    ids = tokenizer.convert_tokens_to_ids([str(number) for number in range(BINS + 1)])  # type: ignore[attr-defined]
    known = [(number, i) for number, i in enumerate(ids) if i is not None and i != tokenizer.unk_token_id]  # type: ignore[attr-defined]
    embeddings = model.get_input_embeddings().weight
    code = fourier_code(BINS + 1, embeddings.shape[1]) * model.config.text_config.initializer_range
    with torch.no_grad():
        for number, i in known:
            embeddings[i] = code[number]


def fourier_code(count: int, width: int) -> Tensor:
    """Smooth code of the numbers 0..count-1, `(count, width)` with unit variance: waves from a quarter period up."""
    frequencies = torch.logspace(math.log10(0.25), math.log10(64), width // 2)
    phase = 2 * math.pi * frequencies * torch.linspace(0, 1, count)[:, None]
    return math.sqrt(2) * torch.cat((phase.cos(), phase.sin()), dim=1)
