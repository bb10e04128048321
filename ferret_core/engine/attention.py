"""Attention over a cache of keys and values that lies in blocks.

Shapes: T positions of a step, S sequences of it, W blocks of the longest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import abc

import torch
import torch.nn.functional as F
from torch import Tensor

from ferret_core.engine.batch import Batch
from ferret_core.engine.blocks import blocks_for
from ferret_core.engine.scheduler import Chunk


class KeyValueCache:
    """Keys and values of every layer."""

    def __init__(
        self, *, layers: int, blocks: int, size: int, heads: int, width: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.size, self.scratch = size, blocks
        """`scratch` is one block more, which no sequence has: rows that only fill up a batch write there."""
        self._blocks = torch.zeros(layers, 2, blocks + 1, size, heads, width, dtype=dtype, device=device)
        self.layers = self._blocks.unbind()
        """Of each layer keys and values, `(2, blocks + 1, size, heads, width)`."""

    def clear_new(self, chunks: abc.Sequence[Chunk]) -> None:
        """Empties the blocks that the chunks are the first to write.

        What lies beyond a sequence's end is masked, but a NaN of its last owner would come through.
        """
        new: list[int] = []
        for chunk in chunks:
            new += chunk.sequence.blocks[blocks_for(chunk.sequence.computed, self.size) : blocks_for(chunk.end, self.size)]
        if new:
            self._blocks[:, :, torch.tensor(new, device=self._blocks.device)] = 0


class Attention(ABC):
    """The attention of one step. Everything that is the same in all layers is made once, when it is.

    For a batch of single positions nothing here or below waits for the device, and shapes follow from the batch's: such a
    step can be captured (`cuda_graphs`).
    """

    block_multiple = 1
    """What the size of a block has to be a multiple of."""

    def __init__(self, batch: Batch, cache: KeyValueCache) -> None:
        self.batch, self.cache = batch, cache

    @staticmethod
    def table_widths(most: int, size: int) -> list[int]:
        """At which widths of block tables to capture steps, up to `most` blocks of `size` positions."""
        return [most]

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """What each position attends to: `(T, heads, width)`.

        Args:
            layer: whose cache takes the new keys and values.
            queries: `(T, heads, width)`.
            keys: `(T, key heads, width)`.
            values: the same.
        """
        cached_keys, cached_values = self.cache.layers[layer]
        cached_keys.flatten(0, 1).index_copy_(0, self.batch.slots, keys)
        cached_values.flatten(0, 1).index_copy_(0, self.batch.slots, values)
        singles = self.batch.singles
        if not self.batch.pieces:
            return self._singles(queries, cached_keys, cached_values)
        if not singles:
            return self._pieces(queries, cached_keys, cached_values)
        return torch.cat(
            (
                self._singles(queries[:singles], cached_keys, cached_values),
                self._pieces(queries[singles:], cached_keys, cached_values),
            )
        )

    @abstractmethod
    def _singles(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Of the sequences with one position, `(singles, heads, width)`; keys and values are the whole cache's."""

    @abstractmethod
    def _pieces(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Of the others, `(T - singles, heads, width)`."""


class TorchAttention(Attention):
    """PyTorch's own, on any device: what a sequence looks back on is copied together first, for each layer."""

    def __init__(self, batch: Batch, cache: KeyValueCache) -> None:
        super().__init__(batch, cache)
        device = batch.ends.device
        if batch.singles:
            seen = torch.arange(batch.single_blocks * cache.size, device=device) < batch.ends[: batch.singles, None]
            self._single_tables = batch.tables[: batch.singles, : batch.single_blocks]
            self._single_mask = seen[:, None, None]
        self._masks: list[Tensor | None] = []
        """`(length, end)` of each piece; none for one that begins a prompt, which is causal."""
        for length, end in batch.pieces:
            mask = torch.ones(length, end, dtype=torch.bool, device=device).tril(end - length)
            self._masks.append(None if end == length else mask)

    @staticmethod
    def table_widths(most: int, size: int) -> list[int]:
        """A step copies as much as its table is wide: twice as wide each time, from 256 positions on."""
        widths = [blocks_for(256, size)]
        while widths[-1] < most:
            widths.append(2 * widths[-1])
        return [*widths[:-1], most]

    def _singles(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """The heads that share a key head are rows of one product."""
        count, heads, width = queries.shape
        key, value = (each[self._single_tables].flatten(1, 2).transpose(1, 2) for each in (keys, values))
        grouped = queries.view(count, key.shape[1], heads // key.shape[1], width)
        return F.scaled_dot_product_attention(grouped, key, value, self._single_mask).view(count, heads, width)

    def _pieces(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        attended, start, size = torch.empty_like(queries), 0, self.cache.size
        for (length, end), table, mask in zip(
            self.batch.pieces, self.batch.tables[self.batch.singles :], self._masks, strict=True
        ):
            key, value = (
                each[table[: blocks_for(end, size)]].flatten(0, 1)[None, :end].transpose(1, 2) for each in (keys, values)
            )
            query = queries[None, start : start + length].transpose(1, 2)
            result = F.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None, enable_gqa=True)
            attended[start : start + length] = result[0].transpose(0, 1)
            start += length
        return attended
