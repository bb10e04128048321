"""The C side of `kernels.cpp`: its structures, and its functions."""

from __future__ import annotations

import ctypes
import logging
import os
from ctypes import POINTER, c_float, c_int, c_int32, c_int64, c_void_p
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

BLOCK = 16
"""Positions of a block of the cache."""
PANEL = 64
"""Outputs of a panel of weights."""
ROWS = {"bfloat16": 6, "int8": 3}
"""Of a product that take no longer than one: the weights are what takes time."""
MOST_WIDTH = 256
"""Of a head."""


class Matrix(ctypes.Structure):
    """A packed weight."""

    _fields_ = [
        *((name, c_void_p) for name in ("panels", "scales", "sums", "bias")),
        ("outputs", c_int64),
        ("inputs", c_int64),
    ]


class Layer(ctypes.Structure):
    """Of a decoder."""

    _fields_ = [
        ("attention_norm", c_void_p),
        *((name, Matrix) for name in ("queries", "keys", "values", "output")),
        ("mlp_norm", c_void_p),
        *((name, Matrix) for name in ("gate", "up", "down")),
        ("cached_keys", c_void_p),
        ("cached_values", c_void_p),
    ]


class Decoder(ctypes.Structure):
    """What is the same in all steps."""

    _fields_ = [
        *((name, c_int64) for name in ("layer_count", "width", "inner", "heads", "key_heads", "head_width")),
        ("epsilon", c_float),
        ("layers", POINTER(Layer)),
        ("final_norm", c_void_p),
        ("head", Matrix),
        ("cosine", c_void_p),
        ("sine", c_void_p),
    ]


class Step(ctypes.Structure):
    """What is to be computed."""

    _fields_ = [
        ("sequences", c_int64),
        ("blocks", c_int64),
        *((name, POINTER(c_int32)) for name in ("lengths", "ends", "tables")),
        ("chosen_count", c_int64),
        ("chosen", POINTER(c_int32)),
    ]


@cache
def library() -> Any:
    """The functions; None where they were not built, or this CPU has not the instructions."""
    if os.environ.get("FERRET_CPU_KERNELS") == "0":
        return None
    spec = find_spec("ferret_core.cpu._kernels")
    if spec is None or spec.origin is None:
        if torch.backends.cpu.get_cpu_capability() == "AVX512":
            logger.warning("PyTorch computes, and slowly: install a C++ compiler, then this package again")
        return None
    try:
        found = ctypes.CDLL(spec.origin)  # shares torch's OpenMP threads: torch has loaded the runtime
    except OSError:
        logger.warning("the CPU's kernels cannot be used with this PyTorch, which computes instead", exc_info=True)
        return None
    sizes = (ctypes.sizeof(Decoder), ctypes.sizeof(Step))
    if sizes != (found.ferret_decoder_size(), found.ferret_step_size()):
        logger.warning("PyTorch computes, for the CPU's kernels are of another release: install this package again")
        return None
    if not found.ferret_supported():
        return None
    found.ferret_product.argtypes = [POINTER(Matrix), c_void_p, c_int64, c_void_p, c_int]
    found.ferret_step.argtypes = [POINTER(Decoder), POINTER(Step), c_void_p, c_void_p, c_int]
    found.ferret_product.restype = found.ferret_step.restype = None
    return found


def available() -> bool:
    """Whether the kernels can be used here. FERRET_CPU_KERNELS=0 says no."""
    return library() is not None


def supports(config: Any) -> bool:
    """Whether a decoder of this `LlamaConfig` can be run with the kernels here."""
    return (
        available()
        and config.hidden_act == "silu"
        and not (config.attention_bias or config.mlp_bias)
        and not any(width % PANEL for width in (config.hidden_size, config.intermediate_size, config.head_dim))
        and config.head_dim <= MOST_WIDTH
    )


def product(matrix: Matrix, rows: Tensor) -> Tensor:
    """float32 `(R, outputs)` of contiguous bfloat16 `rows` `(R, inputs)`."""
    out = torch.empty(len(rows), matrix.outputs)
    if len(rows):
        library().ferret_product(matrix, rows.data_ptr(), len(rows), out.data_ptr(), torch.get_num_threads())
    return out


def step(decoder: Decoder, what: Step, hidden: Tensor, logits: Tensor) -> None:
    """A step of all layers.

    Args:
        decoder: whose caches take the keys and values.
        what: the positions.
        hidden: float32 `(T, width)`, the embeddings; overwritten.
        logits: float32 `(C, vocabulary)`, filled.
    """
    library().ferret_step(decoder, what, hidden.data_ptr(), logits.data_ptr(), torch.get_num_threads())
