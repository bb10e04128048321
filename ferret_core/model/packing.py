"""Training without padding: samples one after the other in one row, each blind to the others, and a loss that never holds
all logits at once.

    outputs = model.language_model(inputs_embeds=(1, T, D), position_ids=(1, T), **packed(cu_seq_lens, max_length))
    nll, predictions = model.lm_head(outputs.last_hidden_state[kept], targets)

Importing this module makes `attn_implementation="packed"` known to transformers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface

_POSITIONS_PER_CHUNK = 2048


def packed(cu_seq_lens: Tensor, max_length: int) -> dict[str, Any]:
    """What transformers' attention wants to know of a packed row.

    Args:
        cu_seq_lens: int32 `(n + 1,)`: where each of the n samples begins, and the end.
        max_length: tokens of the longest.
    """
    return {
        "cu_seq_lens_q": cu_seq_lens,
        "cu_seq_lens_k": cu_seq_lens,
        "max_length_q": max_length,
        "max_length_k": max_length,
        "use_cache": False,  # with a cache transformers takes the row for a single sample
    }


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sample of a packed row: `(1, heads, T, width)` to `(1, T, heads, width)`.

    One call of PyTorch's attention for each sample: a mask over the whole row would take time and memory quadratic in T.
    """
    lengths = [query.shape[2]] if cu_seq_lens_q is None else cu_seq_lens_q.diff().tolist()
    attended = [
        F.scaled_dot_product_attention(*qkv, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=True)
        for qkv in zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    ]
    return torch.cat(attended, 2).transpose(1, 2).contiguous(), None


AttentionInterface.register("packed", packed_attention)


class LanguageModelHead(nn.Linear):
    """Hidden states to logits, or straight to their loss."""

    def forward(self, hidden: Tensor, targets: Tensor | None = None) -> Any:
        """Logits `(..., V)` of `hidden` `(..., D)`.

        With `targets`, int64 `(K,)` for `hidden` `(K, D)`: the float32 sum of their negative log-likelihoods and the most
        likely tokens, int64 `(K,)`. Logits are made, used and made again in the backward pass, a few positions at a time:
        at 7B all of them would take more memory than the decoder's activations.
        """
        if targets is None:
            return super().forward(hidden)
        chunks = zip(hidden.split(_POSITIONS_PER_CHUNK), targets.split(_POSITIONS_PER_CHUNK), strict=True)
        losses, predictions = zip(*(checkpoint(self._loss, *chunk, use_reentrant=False) for chunk in chunks), strict=True)
        return torch.stack(losses).sum(), torch.cat(predictions)

    def _loss(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = super().forward(hidden).float()
        return F.cross_entropy(logits, targets, reduction="sum"), logits.argmax(-1)
