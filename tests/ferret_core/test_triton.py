"""Triton's kernels against PyTorch: on a GPU where there is one, else in Triton's interpreter, in a process of its own."""

import os
import subprocess
import sys

import pytest
import torch

from ferret_core.model.region_encoder import farthest_points

pytest.importorskip("triton")
INTERPRETING, GPU = os.environ.get("TRITON_INTERPRET") == "1", torch.cuda.is_available()
runs = pytest.mark.skipif(not INTERPRETING and not GPU, reason="run in the interpreter by the last test")
DEVICE = "cuda" if GPU and not INTERPRETING else "cpu"


def chosen(points, count):
    from ferret_core.model import farthest_points_triton

    return farthest_points_triton.farthest_points(points.to(DEVICE), count).cpu()


@runs
@pytest.mark.parametrize(("points", "count"), [(1, 1), (2, 2), (33, 20), (512, 40), (1024, 12)])
def test_farthest_points_are_those_of_torch(points, count):
    torch.manual_seed(points)
    drawn = torch.rand(3, points, 2)
    assert torch.equal(chosen(drawn, count), farthest_points(drawn, count))


@runs
def test_ties_repeats_and_what_is_no_number():
    """The pixels of a grid tie all the time; a small region repeats its own; the first NaN is the farthest, and stays it."""
    grid = torch.cartesian_prod(torch.arange(6), torch.arange(6)).float()[None] / 7
    few = torch.rand(2, 3, 2)[:, torch.randint(0, 3, (24,))]
    broken = torch.rand(4, 24, 2)
    broken[0, 7], broken[1, 5:9], broken[2, 0], broken[3, 4] = torch.nan, torch.nan, torch.nan, torch.inf
    broken[3, 9] = -torch.nan
    for points in (grid, few, broken):
        assert torch.equal(chosen(points, 20), farthest_points(points, 20))
    assert chosen(grid[:0], 20).shape == (0, 20)


@runs
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "key_heads", "width", "size"), [(4, 4, 16, 16), (6, 2, 24, 8), (2, 1, 64, 256)])
def test_attention_of_single_positions(heads, key_heads, width, size, dtype):
    """Of sequences from one position to several spans, over blocks in any order, the unused ones of which are no numbers."""
    from ferret_core.engine.attention import KeyValueCache, TorchAttention
    from ferret_core.engine.batch import Batch
    from ferret_core.engine.triton_attention import TritonAttention

    torch.manual_seed(0)
    ends = torch.tensor([1, 30, 256, 257, 600])
    widest = -(-int(ends.max()) // size)
    cache = KeyValueCache(
        layers=1, blocks=len(ends) * widest, size=size, heads=key_heads, width=width, dtype=dtype, device=torch.device(DEVICE)
    )
    tables = torch.randperm(len(ends) * widest).view(len(ends), widest)
    cache.layers[0].normal_()
    for row, end in enumerate(ends):
        tables[row, -(-end // size) :] = tables[row, 0]
    spare = [block for block in range(cache.layers[0].shape[1]) if block not in tables]
    cache.layers[0][:, spare] = torch.nan
    batch = Batch.of_singles((ends - 1).to(DEVICE), tables.to(DEVICE), size)
    joint = torch.randn(len(ends), heads + 2 * key_heads, width, dtype=dtype, device=DEVICE)  # queries are no whole rows of it
    states = joint.split((heads, key_heads, key_heads), 1)
    found, expected = (attention(batch, cache)(0, *states) for attention in (TritonAttention, TorchAttention))
    rounding = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 2e-3, "rtol": 2e-2}
    torch.testing.assert_close(found, expected, **rounding)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from ferret_core.engine import triton_attention
from ferret_core.model import farthest_points_triton

def compile(kernel, constants, **types):
    signature = {name: types.get(name, "constexpr" if name in constants else "i32") for name in kernel.arg_names}
    for capability in (80, 90):
        source = ASTSource(kernel, signature, {(kernel.arg_names.index(name),): value for name, value in constants.items()})
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": False})
        assert compiled.asm["cubin"]

compile(farthest_points_triton._kernel, {"BLOCK": 512}, points="*fp32", chosen="*i64")
compile(
    triton_attention._attend_spans,
    {"GROUP": 1, "SIZE": 16, "WIDTH": 128, "COLUMNS": 128, "SPAN": 256, "TILE": 32},
    queries="*bf16", keys="*bf16", values="*bf16", tables="*i64", ends="*i64", partial="*fp32", weights="*fp32", scale="fp32",
)
compile(
    triton_attention._join_spans, {"WIDTH": 128, "COLUMNS": 128, "SPANS": 8},
    partial="*fp32", weights="*fp32", attended="*bf16",
)
"""


def test_kernels_compile_for_ampere_and_hopper():
    """Which needs no GPU."""
    subprocess.run([sys.executable, "-c", COMPILE], check=True, env={**os.environ, "TRITON_INTERPRET": "0"})


@pytest.mark.skipif(INTERPRETING or GPU, reason="this is it")
def test_in_the_interpreter():
    """Which has to be chosen before triton is first imported."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__, "-k", "not compile"]
    subprocess.run(command, check=True, env={**os.environ, "TRITON_INTERPRET": "1"})
