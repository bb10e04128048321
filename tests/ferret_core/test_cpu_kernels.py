"""Packed layers of the CPU's kernels against torch in float32."""

import pytest
import torch
from torch import nn

from ferret_core import cpu
from ferret_core.cpu import PackedLinear

pytestmark = pytest.mark.skipif(not cpu.available(), reason="needs AVX512-BF16, and a compiler when it was installed")


@pytest.mark.parametrize(("precision", "error"), [("bfloat16", 1e-6), ("int8", 0.01)])
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 1), (64, 64), (576, 2393), (1008, 130)])
@pytest.mark.parametrize("bias", [True, False])
def test_products(precision, error, inputs, outputs, bias):
    torch.manual_seed(0)
    linear = nn.Linear(inputs, outputs, bias=bias).to(torch.bfloat16)
    packed = PackedLinear(linear, precision)
    for rows in (1, 2, 5, 6, 7, 50):
        given = torch.randn(rows, inputs).to(torch.bfloat16).float()
        with torch.no_grad():
            expected = nn.functional.linear(given, linear.weight.float(), linear.bias.float() if bias else None)
        result = packed(given)
        assert result.dtype == torch.float32
        assert (result - expected).norm() <= error * expected.norm()
        assert torch.equal(result, torch.cat([packed(row[None]) for row in given]))  # each row by itself


def test_shapes():
    packed = PackedLinear(nn.Linear(8, 3))
    assert packed(torch.zeros(2, 5, 8)).shape == (2, 5, 3)
    assert packed(torch.zeros(0, 8)).shape == (0, 3)
    assert packed(torch.zeros(4, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert repr(packed) == "PackedLinear(8, 3, bfloat16)"


def test_int8_takes_weights_of_any_size():
    linear = nn.Linear(64, 3, bias=False)
    with torch.no_grad():
        linear.weight[0], linear.weight[1] = 0, 1e6
        given = torch.ones(1, 64)
        assert torch.allclose(PackedLinear(linear, "int8")(given), linear(given), rtol=0.01, atol=0.05)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_what_is_no_number_stays_none(precision):
    """And in its row."""
    packed = PackedLinear(nn.Linear(64, 70), precision)
    given = torch.randn(5, 64)
    expected = packed(given)
    given[3, 20] = float("nan")
    result = packed(given)
    assert result[3].isnan().all()
    given[3] = 0
    assert torch.equal(result[[0, 1, 2, 4]], expected[[0, 1, 2, 4]])


@pytest.mark.parametrize(("precision", "multiple"), [("bfloat16", 2), ("int8", 16)])
def test_inputs_that_do_not_fit(precision, multiple):
    with pytest.raises(ValueError, match=f"{precision}: inputs must be a multiple of {multiple}, got 17"):
        PackedLinear(nn.Linear(17, 3), precision)
