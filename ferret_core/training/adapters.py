"""Low-rank adapters (LoRA, arXiv 2106.09685) on every linear layer of the decoder's blocks.

    adapted(x) = W x + alpha / rank * B A x         W (out, in) as it was; A (rank, in) and B (out, rank) trained

A run trains those of peft. What is exported has them merged into W, and the plan of a run counts and measures their shapes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import Tensor, nn

from ferret_core.checkpoint.lora import merged
from ferret_core.model import FerretForConditionalGeneration
from ferret_core.training.config import LoraConfig, TrainConfig

_LAYERS = r"model\.language_model\.layers\..*_proj"
_BASE, _ADAPTER = ".base_layer.weight", ".lora_{}.default.weight"  # ends of parameters' names, as peft calls them


def add_adapters(model: FerretForConditionalGeneration, config: TrainConfig) -> None:
    """Adapters that are trained in place of the weights they adapt; with B = 0 they change nothing yet."""
    try:
        import peft
    except ModuleNotFoundError as error:
        raise RuntimeError("lora.rank > 0 needs peft: pip install 'ferret-platform[train]'") from error
    lora = config.lora
    theirs = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=_LAYERS)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    peft.inject_adapter_in_model(theirs, model)  # which freezes everything else
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_adapter(name) or name in trained)


def is_adapter(name: str) -> bool:
    """Whether a parameter is A or B."""
    return name.endswith((_ADAPTER.format("A"), _ADAPTER.format("B")))


def plain_name(name: str) -> str:
    """What a parameter that is no adapter is called in a model without adapters."""
    return name.replace(_BASE, ".weight")


def merge_adapter(name: str, value: Callable[[str], Tensor], config: LoraConfig) -> Tensor:
    """A parameter's value with what its adapter adds: as it is where there is none.

    Args:
        name: of a parameter that is no adapter.
        value: a parameter's values by its name.
        config: of the adapters.
    """
    layer, adapted, _ = name.partition(_BASE)
    if not adapted:
        return value(name)
    down, up = (value(layer + _ADAPTER.format(each)) for each in "AB")
    return merged(value(name), down, up, config.scale)


# ---- in a plan -------------------------------------------------------------------------------------------------------


def lora_parameters(model: FerretForConditionalGeneration, rank: int) -> int:
    """Parameters of adapters of this rank."""
    linears = (each for each in model.model.language_model.layers.modules() if isinstance(each, nn.Linear))
    return sum(rank * (linear.in_features + linear.out_features) for linear in linears)


def adapted(layer: nn.Module, config: LoraConfig) -> nn.Module:
    """One of the decoder's layers, with adapters if there are any, in shapes: everything is on the meta device."""
    if config.rank:
        layer = copy.deepcopy(layer)
        for name, linear in list(layer.named_modules()):
            if isinstance(linear, nn.Linear):
                layer.set_submodule(name, _Adapted(linear, config))
    return layer


class _Adapted(nn.Module):
    """A linear layer with an adapter beside it, which computes as peft's does."""

    def __init__(self, linear: nn.Linear, config: LoraConfig) -> None:
        super().__init__()
        self.linear, self.scale, self.dropout = linear, config.scale, nn.Dropout(config.dropout)
        self.down = nn.Linear(linear.in_features, config.rank, bias=False)
        self.up = nn.Linear(config.rank, linear.out_features, bias=False)
        self.to("meta", linear.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.scale * self.up(self.down(self.dropout(x)))
