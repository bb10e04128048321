"""Steps in which every sequence goes on by one token, captured once and replayed: the device no longer waits for Python.

A captured step is a function of one tensor of integers, at one place in memory. There is one for each number of rows (1, 2,
4, 8 and so on) and width of block tables; a step takes the smallest it fits, and rows of no sequence fill it up: they look back
on nothing but a block of their own.
"""

from __future__ import annotations

from collections import abc
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ferret_core.engine.batch import block_tables
from ferret_core.engine.scheduler import Chunk

Replay = abc.Callable[[], None]
Capture = abc.Callable[[abc.Callable[[], Tensor]], tuple[Replay, Tensor]]
"""Takes a function without arguments; returns what computes it again, and the tensor that then holds its results."""


class CudaCapture:
    """Captures CUDA graphs, which share their memory: only one runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._pool = device, torch.cuda.graph_pool_handle()
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()  # one for all: each has a workspace of cuBLAS

    def __call__(self, function: abc.Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        """As `Capture` says."""
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                function()  # what libraries do once must not be captured
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                output = function()
        return graph.replay, output


class DecodeGraphs:
    """All the captured steps of a decoder."""

    def __init__(
        self,
        decode: abc.Callable[[Tensor], Tensor],
        capture: Capture,
        *,
        rows: int,
        widths: abc.Sequence[int],
        size: int,
        scratch: int,
        device: torch.device,
    ) -> None:
        """Captures.

        Args:
            decode: from int64 `(R, 2 + W)`, for each of R rows a token, its position and its sequence's W blocks, to logits
                `(R, vocabulary)`. Whatever it computes follows from these and the shapes.
            capture: keeps a function for later.
            rows: the most there can be.
            widths: of block tables, ascending.
            size: positions of a block.
            scratch: the block of rows that fill up.
            device: where `decode` computes.
        """
        self._size, self._scratch = size, scratch
        self._rows = [count for count in (2**power for power in range(rows.bit_length())) if count < rows] + [rows]
        self._widths = widths
        self._steps: dict[tuple[int, int], tuple[Tensor, Replay, Tensor]] = {}
        for count in reversed(self._rows):  # the largest first: the others find room in its memory
            for width in reversed(widths):
                inputs = torch.from_numpy(self._idle(count, width)).to(device)
                self._steps[count, width] = (inputs, *capture(partial(decode, inputs)))

    def run(self, chunks: abc.Sequence[Chunk]) -> Tensor:
        """Logits `(C, vocabulary)` of C chunks of one position each, all of them of token ids."""
        count = next(rows for rows in self._rows if rows >= len(chunks))
        longest = max(chunk.end for chunk in chunks)
        width = next(width for width in self._widths if width * self._size >= longest)
        filled = self._idle(count, width)
        filled[: len(chunks), 0] = [chunk.sequence.token_ids[chunk.sequence.computed] for chunk in chunks]
        filled[: len(chunks), 1] = [chunk.sequence.computed for chunk in chunks]
        filled[: len(chunks), 2:] = block_tables(chunks, width, self._size)
        inputs, replay, logits = self._steps[count, width]
        inputs.copy_(torch.from_numpy(filled))
        replay()
        return logits[: len(chunks)].clone()  # the next step writes over it

    def fits(self, chunks: abc.Sequence[Chunk]) -> bool:
        """Whether there is a captured step for the chunks."""
        return len(chunks) <= self._rows[-1] and all(
            chunk.length == 1 and chunk.chooses and chunk.sequence.answered for chunk in chunks
        )

    def _idle(self, rows: int, width: int) -> np.ndarray:
        """Rows of no sequence."""
        inputs = np.zeros((rows, 2 + width), np.int64)
        inputs[:, 2:] = self._scratch
        return inputs
