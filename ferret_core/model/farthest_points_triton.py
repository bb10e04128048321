"""Farthest-point sampling as one GPU program per region: its points stay in registers, and no step is a launch of its own.

Needs triton, which PyTorch's CUDA builds bring along.
"""

# ruff: noqa: N803 (Triton's constants are upper case)
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _kernel(points, chosen, point_count, count, BLOCK: tl.constexpr):
    region = tl.program_id(0).to(tl.int64)
    points += region * point_count * 2
    index = tl.arange(0, BLOCK)
    exists = index < point_count
    x, y = tl.load(points + index * 2, mask=exists, other=0.0), tl.load(points + index * 2 + 1, mask=exists, other=0.0)
    nearest = tl.full((BLOCK,), float("inf"), tl.float32)
    current = 0
    for step in range(count):
        tl.store(chosen + region * count + step, current)
        across, down = x - tl.load(points + current * 2), y - tl.load(points + current * 2 + 1)
        nearest = tl.minimum(nearest, across * across + down * down, propagate_nan=tl.PropagateNan.ALL)
        # Non-negative floats order like their bits. As for torch, a NaN is the largest; what only fills up is the smallest.
        rank = tl.where(nearest == nearest, nearest.to(tl.int32, bitcast=True), 0x7FFFFFFF)
        current = tl.argmax(tl.where(exists, rank, -1), 0, tie_break_left=True)


def farthest_points(points: Tensor, count: int) -> Tensor:
    """`region_encoder.farthest_points` on a GPU: the same arguments, the same indices."""
    regions, point_count, _ = points.shape
    chosen = torch.empty(regions, count, dtype=torch.long, device=points.device)
    if chosen.numel():
        block = triton.next_power_of_2(point_count)
        # A fused product and sum rounds once where torch rounds twice: near ties would go elsewhere.
        with torch.cuda.device_of(points):  # Triton launches on the current one
            _kernel[(regions,)](points.contiguous(), chosen, point_count, count, BLOCK=block, enable_fp_fusion=False)
    return chosen
