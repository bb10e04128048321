"""The positions of one step as tensors: where they lie in their sequences, and where in the cache.

Shapes: T positions of a step, S sequences of it, W blocks of the longest.
"""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ferret_core.engine.blocks import blocks_for
from ferret_core.engine.scheduler import Chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Sequences with one position come first, those with pieces of prompts after them."""

    positions: Tensor
    """`(T,)`, each in its own sequence."""
    slots: Tensor
    """`(T,)`, where the cache takes the keys and values of each."""
    tables: Tensor
    """`(S, W)`, the blocks of each sequence; behind its last one, the first again, which is masked."""
    ends: Tensor
    """`(S,)`, up to where each sequence looks back."""
    singles: int
    """Sequences with one position."""
    single_blocks: int
    """W, of these alone."""
    pieces: tuple[tuple[int, int], ...] = ()
    """Length and end of the others."""

    @classmethod
    def of_chunks(cls, chunks: abc.Sequence[Chunk], size: int, device: torch.device) -> Batch:
        """A step of the scheduler, over blocks of `size` positions."""
        lengths, ends = [chunk.length for chunk in chunks], [chunk.end for chunk in chunks]
        tables = block_tables(chunks, max(blocks_for(end, size) for end in ends), size)
        positions = np.concatenate([np.arange(end - n, end) for end, n in zip(ends, lengths, strict=True)])
        rows, singles = np.repeat(np.arange(len(chunks)), lengths), lengths.count(1)
        slots = tables[rows, positions // size] * size + positions % size
        return cls(
            positions=torch.from_numpy(positions).to(device),
            slots=torch.from_numpy(slots).to(device),
            tables=torch.from_numpy(tables).to(device),
            ends=torch.tensor(ends, device=device),
            singles=singles,
            single_blocks=blocks_for(max(ends[:singles], default=0), size),
            pieces=tuple(zip(lengths[singles:], ends[singles:], strict=True)),
        )

    @classmethod
    def of_singles(cls, positions: Tensor, tables: Tensor, size: int) -> Batch:
        """One position of each sequence, from what is on the device already: nothing waits for it."""
        blocks = tables.gather(1, (positions // size)[:, None])[:, 0]
        return cls(
            positions=positions,
            slots=blocks * size + positions % size,
            tables=tables,
            ends=positions + 1,
            singles=len(tables),
            single_blocks=tables.shape[1],
        )


def block_tables(chunks: abc.Sequence[Chunk], width: int, size: int) -> np.ndarray:
    """int64 `(chunks, width)`: the blocks that each looks back on."""
    tables = np.empty((len(chunks), width), np.int64)
    for row, chunk in enumerate(chunks):
        blocks = chunk.sequence.blocks[: blocks_for(chunk.end, size)]
        tables[row, : len(blocks)] = blocks
        tables[row, len(blocks) :] = blocks[0]  # masked; of its own, for what others have may be NaN
    return tables


def chosen_rows(chunks: abc.Sequence[Chunk]) -> np.ndarray:
    """int64 `(C,)`: the rows of a step, counted over all chunks, after which a token is chosen."""
    ends = np.cumsum([chunk.length for chunk in chunks])
    return np.concatenate([np.arange(end - chunk.choices, end) for chunk, end in zip(chunks, ends, strict=True)])
