"""Decoding: from a prompt's embeddings to text, token by token."""

from ferret_core.engine.decoding import Delta, decode
from ferret_core.engine.sampling import SamplingParams

__all__ = ["Delta", "SamplingParams", "decode"]
