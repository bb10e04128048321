"""One answer at a time: prefill the prompt, then one token a step over a key-value cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ferret_core.answer import FinishReason
from ferret_core.engine.detokenizer import Detokenizer
from ferret_core.engine.sampling import Sampler, SamplingParams
from ferret_core.model import FerretForConditionalGeneration


@dataclass(frozen=True, slots=True)
class Delta:
    """A step's text, possibly empty, and how many tokens the answer has by now."""

    text: str
    completion_tokens: int
    finish_reason: FinishReason | None = None


def decode(
    model: FerretForConditionalGeneration, tokenizer: Any, embeddings: Tensor, params: SamplingParams
) -> Iterator[Delta]:
    """Streams the answer to one prompt; the last delta has a `finish_reason`.

    Args:
        model: only its decoder is used.
        tokenizer: to text.
        embeddings: `(1, L, D)` of `embed_prompt`.
        params: how to choose tokens, and when to end.
    """
    cache, sampler, text = DynamicCache(), Sampler(params), Detokenizer(tokenizer, params.stop)
    inputs: dict[str, Tensor] = {"inputs_embeds": embeddings}
    for count in range(1, params.max_new_tokens + 1):
        with torch.inference_mode():
            logits = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
        token = sampler.choose(logits)
        if token == tokenizer.eos_token_id:
            yield Delta(text.finish(), count, "stop")
            return
        piece = text.feed(token)
        if text.stopped:
            yield Delta(piece, count, "stop")
            return
        if count == params.max_new_tokens:
            piece += text.finish()
            yield Delta(piece, count, "stop" if text.stopped else "length")
            return
        yield Delta(piece, count)
        inputs = {"input_ids": torch.tensor([[token]], device=embeddings.device)}
