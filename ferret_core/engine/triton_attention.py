"""Attention of single positions by a Triton kernel, which reads the cache's blocks where they lie; pieces of prompts are
PyTorch's own. Needs triton, which PyTorch's CUDA builds bring along.

A sequence is cut into spans, each a program of its own, so that a few long sequences keep a whole GPU busy (flash-decoding,
Dao et al., 2023); a second kernel puts together what the spans found.
"""

# ruff: noqa: N803 (Triton's constants are upper case)
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ferret_core.engine.attention import Attention, TorchAttention
from ferret_core.engine.blocks import blocks_for

_SPAN = 256
"""Positions of a program."""


@triton.jit(do_not_specialize=["table_stride"])  # or it would be compiled for each width of tables
def _attend_spans(
    queries, keys, values, tables, ends, partial, weights, scale, query_stride, block_stride, table_stride,
    GROUP: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, SPAN: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One head of one sequence over one span: the softmax's largest score, its sum, and the weighted values."""
    row, head, span = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    end = tl.load(ends + row)
    column = tl.arange(0, COLUMNS)
    used = column < WIDTH
    query = tl.load(queries + row * query_stride + head * WIDTH + column, mask=used, other=0.0).to(tl.float32) * scale
    largest, total = float("-inf"), 0.0
    attended = tl.zeros((COLUMNS,), tl.float32)
    key_heads = tl.num_programs(1) // GROUP
    for start in range(span * SPAN, tl.minimum(end, (span + 1) * SPAN), TILE):
        position = start + tl.arange(0, TILE)
        seen = position < end
        block = tl.load(tables + row * table_stride + position // SIZE, mask=seen, other=0).to(tl.int64)
        place = block * block_stride + ((position % SIZE) * key_heads + head // GROUP) * WIDTH
        where, mask = place[:, None] + column[None], seen[:, None] & used[None]
        key = tl.load(keys + where, mask=mask, other=0.0).to(tl.float32)
        score = tl.where(seen, tl.sum(key * query[None], 1), float("-inf"))
        above = tl.maximum(largest, tl.max(score, 0))
        weight, shrunk = tl.exp(score - above), tl.exp(largest - above)
        value = tl.load(values + where, mask=mask, other=0.0).to(tl.float32)
        attended = attended * shrunk + tl.sum(weight[:, None] * value, 0)
        largest, total = above, total * shrunk + tl.sum(weight, 0)
    place = (row * tl.num_programs(1) + head) * tl.num_programs(2) + span
    tl.store(partial + place * WIDTH + column, attended, mask=used)
    tl.store(weights + place * 2, largest)
    tl.store(weights + place * 2 + 1, total)


@triton.jit(do_not_specialize=["spans"])
def _join_spans(partial, weights, attended, spans, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, SPANS: tl.constexpr):
    place = tl.program_id(0).to(tl.int64)
    span, column = tl.arange(0, SPANS), tl.arange(0, COLUMNS)
    exists, used = span < spans, column < WIDTH
    largest = tl.load(weights + (place * spans + span) * 2, mask=exists, other=float("-inf"))
    total = tl.load(weights + (place * spans + span) * 2 + 1, mask=exists, other=0.0)
    shrunk = tl.exp(largest - tl.max(largest, 0))  # of a span that nothing is in: 0
    where, mask = (place * spans + span[:, None]) * WIDTH + column[None], exists[:, None] & used[None]
    joined = tl.sum(tl.load(partial + where, mask=mask, other=0.0) * shrunk[:, None], 0) / tl.sum(total * shrunk, 0)
    tl.store(attended + place * WIDTH + column, joined.to(attended.dtype.element_ty), mask=used)


class TritonAttention(TorchAttention):
    """Reads only what a sequence looks back on, however wide the tables are."""

    table_widths = staticmethod(Attention.table_widths)

    def _singles(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        batch, size = self.batch, self.cache.size
        (rows, heads, width), key_heads = queries.shape, keys.shape[2]
        spans, columns = blocks_for(batch.single_blocks * size, _SPAN), triton.next_power_of_2(width)
        partial = torch.empty(rows, heads, spans, width, device=queries.device)
        weights = torch.empty(rows, heads, spans, 2, device=queries.device)
        attended = torch.empty(rows, heads, width, dtype=queries.dtype, device=queries.device)
        with torch.cuda.device_of(queries):  # Triton launches on the current one
            _attend_spans[rows, heads, spans](
                queries, keys, values, batch.tables, batch.ends, partial, weights, width**-0.5,
                queries.stride(0), keys.stride(0), batch.tables.stride(0),
                GROUP=heads // key_heads, SIZE=size, WIDTH=width, COLUMNS=columns, SPAN=_SPAN, TILE=32,
            )  # fmt: skip
            _join_spans[(rows * heads,)](
                partial, weights, attended, spans, WIDTH=width, COLUMNS=columns, SPANS=triton.next_power_of_2(spans)
            )
        return attended
