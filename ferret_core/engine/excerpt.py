"""A chunk as it goes to the other ranks of `tensor_parallel`: plain data, with what a step needs of its sequence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from ferret_core.engine.prompt import Segment
from ferret_core.engine.scheduler import Chunk
from ferret_core.engine.sequence import Sequence
from ferret_core.model import default_device


def excerpt(chunk: Chunk, device: torch.device, dtype: torch.dtype) -> Chunk:
    """The chunk as all ranks compute it, this one included.

    Embeddings of segments are computed here, of what the chunk has of them, before other ranks hear of the step: if that
    fails, none of them waits for it.
    """
    sequence, start, end = chunk.sequence, chunk.sequence.computed, chunk.end
    segments = []
    for segment in sequence.prompt.segments:
        if own := segment.overlap(start, end):
            rows = segment.embeddings(own.start - segment.start, own.stop - segment.start).to(device, dtype).contiguous()
            segments.append(Segment(own.start, len(own), segment.digest, BroadcastEmbeddings(rows.shape, rows.dtype, rows)))
    token_ids = TokenSlice(start, sequence.token_ids[start:end])
    part = Excerpt(sequence.computed, sequence.remaining, sequence.blocks, token_ids, tuple(segments))
    return replace(chunk, sequence=cast(Sequence, part))


@dataclass(frozen=True, slots=True)
class TokenSlice:
    """Token ids of some positions of a sequence, found by these."""

    start: int
    ids: list[int]

    def __getitem__(self, positions: slice) -> list[int]:
        return self.ids[positions.start - self.start : positions.stop - self.start]


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Stands in for a sequence in its chunk: what a runner looks at."""

    computed: int
    remaining: int
    blocks: list[int]
    token_ids: TokenSlice
    segments: tuple[Segment, ...]

    @property
    def prompt(self) -> Excerpt:
        """Itself, as far as segments go."""
        return self


@dataclass(frozen=True, slots=True)
class BroadcastEmbeddings:
    """Embeddings of a segment that rank 0 has; the others are told their shape, and get them when they need them."""

    shape: torch.Size
    dtype: torch.dtype
    rows: Tensor | None = None

    def __reduce__(self) -> tuple[object, ...]:
        return BroadcastEmbeddings, (self.shape, self.dtype)

    def __call__(self, first: int, last: int) -> Tensor:
        """All ranks call this at the same point of a step."""
        rows = torch.empty(self.shape, dtype=self.dtype, device=default_device()) if self.rows is None else self.rows
        dist.broadcast(rows, 0)
        return rows[first:last]
