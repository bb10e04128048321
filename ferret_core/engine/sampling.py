"""How the next token is chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Settings of one answer. Raises `ValueError` naming the setting that is out of range."""

    max_new_tokens: int = 256
    """Most tokens of the answer."""
    temperature: float = 0.0
    """0 takes the likeliest token; higher is more varied."""
    top_p: float = 1.0
    """Sample only from the likeliest tokens that together have this probability."""
    top_k: int = 0
    """Sample only from this many likeliest tokens; 0 for all."""
    seed: int = 0
    """Of the random choices: the same request with the same seed gives the same answer."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these."""
    stop_token_ids: tuple[int, ...] = ()
    """The answer ends with the first of these, besides the model's own end; they are not part of its text."""
    repetition_penalty: float = 1.0
    """Above 1, tokens of the prompt's text and of the answer become less likely to come again (Keskar et al., CTRL, 2019)."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: must be at least 1, got {self.max_new_tokens}")
        if not (math.isfinite(self.temperature) and 0 <= self.temperature <= 5):
            raise ValueError(f"temperature: must be in [0, 5], got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: must be in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k: must be 0 (all) or more, got {self.top_k}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed: must be in [0, 2^63), got {self.seed}")
        if isinstance(self.stop, str) or len(self.stop) > 8 or not all(0 < len(text) <= 64 for text in self.stop):
            raise ValueError("stop: at most 8 texts of 1 to 64 characters")
        if len(self.stop_token_ids) > 8 or not all(0 <= token < 2**31 for token in self.stop_token_ids):
            raise ValueError("stop_token_ids: at most 8 ids of tokens")
        if not 0.1 <= self.repetition_penalty <= 10:
            raise ValueError(f"repetition_penalty: must be in [0.1, 10], got {self.repetition_penalty}")


def choose(logits: Tensor, params: SamplingParams, position: int, before: Sequence[int] = ()) -> int:
    """The next token.

    Args:
        logits: `(vocabulary,)`.
        params: how to choose.
        position: of the token in its answer, from 0. Chance is a function of it and the seed: an answer that was broken off
            can be gone on with by whoever knows its tokens.
        before: tokens of prompt and answer, for the penalty; those below 0 stand for an image.
    """
    logits = logits.float().cpu()
    if params.repetition_penalty != 1:
        seen = torch.tensor([token for token in set(before) if token >= 0], dtype=torch.long)
        penalized = logits[seen]
        penalty = params.repetition_penalty
        logits = logits.index_copy(0, seen, torch.where(penalized > 0, penalized / penalty, penalized * penalty))
    if params.temperature == 0:
        return int(logits.argmax())
    scores, order = ((logits - logits.max()) / params.temperature).topk(min(params.top_k or len(logits), len(logits)))
    probabilities = scores.softmax(-1)
    likelier = probabilities.cumsum(-1) - probabilities
    reached = probabilities.masked_fill(likelier >= params.top_p, 0.0).double().cumsum(-1)
    drawn = np.random.default_rng((params.seed, position)).random() * float(reached[-1])
    return int(order[(reached <= drawn).sum()])
