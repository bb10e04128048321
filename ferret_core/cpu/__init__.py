"""Kernels of our own for CPUs with AVX512-BF16: products with packed weights, and a decoder's step in one call.

They are built when the package is installed, where there is a compiler; elsewhere, and on other CPUs, torch computes.
`products.h` and `attention.h` are the arithmetic, `kernels.cpp` the step, `kernels.py` calls it, and `linear.PackedLinear`
is a linear layer of them.
"""

from ferret_core.cpu.kernels import available, supports
from ferret_core.cpu.linear import PackedLinear, pack

__all__ = ["PackedLinear", "available", "pack", "supports"]
