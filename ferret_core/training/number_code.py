"""A code for numbers that spares a small model a long search.

Coordinates are tokens, 0 to 1000, that a model would have to learn one by one. The code makes neighbours similar: it is
where the embeddings of these tokens start, and what the dense task teaches the vision tower to write into its features, so
that reading a box off the picture is, to begin with, a linear matter.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ferret_core.geometry import BINS
from ferret_core.model import FerretForConditionalGeneration

CODE_WIDTH = 32


def number_code() -> Tensor:
    """Waves from a quarter period to 64 periods over the range, `(1001, CODE_WIDTH)`, of unit variance."""
    frequencies = torch.logspace(math.log10(0.25), math.log10(64), CODE_WIDTH // 2)
    phase = 2 * math.pi * frequencies * torch.linspace(0, 1, BINS + 1)[:, None]
    return math.sqrt(2) * torch.cat((phase.cos(), phase.sin()), dim=1)


@torch.no_grad()
def initialize_numbers(model: FerretForConditionalGeneration, tokenizer: Any) -> None:
    """Starts the embeddings of the tokens "0" to "1000" at the code, in a random basis; other embeddings stay."""
    embeddings = model.get_input_embeddings().weight
    width = embeddings.shape[1]
    basis = torch.nn.init.orthogonal_(torch.empty(CODE_WIDTH, width), generator=torch.Generator().manual_seed(0))
    code = number_code() @ basis * math.sqrt(width / CODE_WIDTH) * model.config.text_config.initializer_range
    ids = tokenizer.convert_tokens_to_ids([str(number) for number in range(BINS + 1)])
    for number, token in enumerate(ids):
        if token is not None and token != tokenizer.unk_token_id:
            embeddings[token] = code[number]
