"""Attention by flash-attn 2, which reads the cache's blocks where they lie: no copies. Wants CUDA, half precision and blocks of
256 positions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.utils import is_flash_attn_2_available

from ferret_core.engine.attention import Attention, KeyValueCache
from ferret_core.engine.batch import Batch


def usable(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether flash-attn is installed and has a kernel for these heads of `width` here."""
    half = dtype in (torch.bfloat16, torch.float16)
    fits = device.type == "cuda" and half and width % 8 == 0 and width <= 256
    return fits and torch.cuda.get_device_capability(device) >= (8, 0) and is_flash_attn_2_available()


class FlashAttention(Attention):
    """flash-attn's two kernels. Its tables and lengths are int32; causal masks end at the last position of each sequence."""

    block_multiple = 256

    def __init__(self, batch: Batch, cache: KeyValueCache) -> None:
        super().__init__(batch, cache)
        tables, ends = batch.tables.to(torch.int32), batch.ends.to(torch.int32)
        self._single_tables = tables[: batch.singles, : batch.single_blocks].contiguous()
        self._single_ends = ends[: batch.singles]
        if batch.pieces:
            lengths, looked_back_on = zip(*batch.pieces, strict=True)
            self._tables, self._longest = tables[batch.singles :], (max(lengths), max(looked_back_on))
            self._starts = [
                torch.tensor([0, *counts], device=ends.device).cumsum(0, dtype=torch.int32)
                for counts in (lengths, looked_back_on)
            ]

    def _singles(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        from flash_attn import flash_attn_with_kvcache

        attended = flash_attn_with_kvcache(
            queries[:, None], keys, values, cache_seqlens=self._single_ends, block_table=self._single_tables, causal=True
        )
        return attended[:, 0]

    def _pieces(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func(
            queries, keys, values, *self._starts, *self._longest, causal=True, block_table=self._tables
        )
