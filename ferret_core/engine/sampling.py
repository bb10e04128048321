"""How the next token is chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass

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


class Sampler:
    """Chooses tokens for one answer."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self.generator = torch.Generator().manual_seed(params.seed)

    def choose(self, logits: Tensor) -> int:
        """The next token from logits `(vocabulary,)`."""
        if self.params.temperature == 0:
            return int(logits.argmax())
        logits = logits.float().cpu()
        scores, order = ((logits - logits.max()) / self.params.temperature).sort(descending=True)
        if self.params.top_k:
            scores = scores[: self.params.top_k]
        probabilities = scores.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= self.params.top_p, 0.0)
        return int(order[probabilities.multinomial(1, generator=self.generator)])
