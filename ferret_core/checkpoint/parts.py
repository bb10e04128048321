"""Which weights a model has, and which part of it each belongs to."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import nn

from ferret_core.checkpoint.weights import Weight
from ferret_core.model import FerretConfig, FerretForConditionalGeneration

PARTS = ("vision_tower", "projector", "region_encoder", "decoder")
"""In the order that a picture takes."""

_BEGINNINGS = {
    "model.vision_tower.": "vision_tower",
    "model.multi_modal_projector.": "projector",
    "model.region_encoder.": "region_encoder",
    "model.language_model.": "decoder",
    "lm_head.": "decoder",
}


_BESIDE = re.compile(r"\.(SCB|weight_format|weight\.(absmax|quant_map|quant_state\.\w+|nested_\w+))$")
"""What bitsandbytes puts beside a matrix that it packs."""


def part_of(name: str) -> str:
    """`vision_tower`, `projector`, `region_encoder` or `decoder`: where a weight of a model belongs; nowhere, if it is none."""
    return next((part for beginning, part in _BEGINNINGS.items() if name.startswith(beginning)), "")


def parameters(weight: Weight) -> int:
    """How many of a model's are in a tensor: two in a byte that 4 bits are packed in, and none in what is beside it."""
    return 0 if _BESIDE.search(weight.name) else weight.size * (2 if weight.dtype == torch.uint8 else 1)


def expected_shapes(config: FerretConfig) -> dict[str, tuple[int, ...]]:
    """Every weight that a model of this configuration has."""
    shapes = {name: tuple(tensor.shape) for name, tensor in _without_values(config).state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    return shapes


class Packed(NamedTuple):
    """How a quantized checkpoint holds a matrix."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    scales: str
    """The tensor that has them."""


def packed_matrices(config: FerretConfig) -> dict[str, Packed]:
    """The weights of which a quantized checkpoint holds integers, as bitsandbytes packs them; none, if it is not quantized."""
    settings = getattr(config, "quantization_config", None)
    if not settings:
        return {}
    kept = tuple(f"{name}." for name in settings.get("llm_int8_skip_modules") or ["lm_head"])
    packed = {}
    for name, module in _without_values(config).named_modules():
        if isinstance(module, nn.Linear) and not f"{name}.".startswith(kept):
            rows, columns = module.weight.shape
            if settings.get("load_in_8bit"):
                packed[f"{name}.weight"] = Packed((rows, columns), torch.int8, f"{name}.SCB")
            else:
                packed[f"{name}.weight"] = Packed((rows * columns // 2, 1), torch.uint8, f"{name}.weight.absmax")
    return packed


def problems(weights: Mapping[str, Weight], config: FerretConfig, without: Collection[str] = ()) -> list[str]:
    """What keeps weights from being a model of this configuration, in words: nothing, if they are one.

    Args:
        weights: by name.
        config: of the model.
        without: parts that need not be there.
    """
    expected, packed = expected_shapes(config), packed_matrices(config)
    shapes = expected | {name: matrix.shape for name, matrix in packed.items()}
    held = {part_of(name) for name in weights}
    found = []
    for part in PARTS:
        names = [name for name in expected if part_of(name) == part]
        if part not in held:
            if part not in without:
                found.append(f"the {part.replace('_', ' ')} is missing, all {len(names)} weights of it")
            continue
        for name in names:
            if name not in weights:
                found.append(f"{name} is missing")
            elif weights[name].shape != shapes[name]:
                found.append(f"{name} is {weights[name].shape}, and should be {shapes[name]}")
            elif name not in packed and not weights[name].dtype.is_floating_point:
                found.append(f"{name} is {weights[name].dtype_name}, and should be floating-point")
            elif name in packed and weights[name].dtype != packed[name].dtype:
                found.append(f"{name} is {weights[name].dtype_name}, and should be quantized")
            elif name in packed and packed[name].scales not in weights:
                found.append(f"{packed[name].scales} is missing")
    known = expected.keys() | ({"lm_head.weight"} if config.tie_word_embeddings else set())
    strange = [name for name in weights if name not in known and _BESIDE.sub(".weight", name) not in packed]
    return found + [f"{name} is no weight of such a model" for name in strange]


def check(weights: Mapping[str, Weight], config: FerretConfig) -> None:
    """Raises `ValueError` unless weights are a model of this configuration."""
    if found := problems(weights, config):
        raise ValueError("; ".join(found[:3]) + (f"; and {len(found) - 3} problems more" if len(found) > 3 else ""))


def are_differences(weights: Mapping[str, Weight]) -> bool:
    """Whether weights are a delta's: a trained norm scales by 1 or so, and the difference of two is about 0."""
    norm = weights.get("model.language_model.norm.weight")
    return norm is not None and bool(norm.read().float().mean().abs() < 0.5)


def _without_values(config: FerretConfig) -> FerretForConditionalGeneration:
    with torch.device("meta"):
        return FerretForConditionalGeneration(config)
