"""The model of a run as a checkpoint that serves: safetensors, configuration and processor, `ferret up --model DIR`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ferret_core.checkpoint.shards import write_shards
from ferret_core.checkpoint.weights import Weight
from ferret_core.training.adapters import is_adapter, merge_adapter, plain_name
from ferret_core.training.config import TrainConfig
from ferret_core.training.strategies import Strategy


def export(strategy: Strategy, config: TrainConfig, directory: Path, average: bool = False) -> None:
    """Writes the model, parameter by parameter: no more than one is ever gathered in one place. Collective.

    Adapters are merged into the weights they adapt. With `average`, the moving averages of the weights.

    Raises:
        OSError: there is no room for it.
    """
    dtype = getattr(torch, config.dtype)
    weights = _weights(strategy, config, dtype, average)
    if not strategy.workers.first:
        for weight in weights:
            weight.read()
        return
    directory.mkdir(parents=True, exist_ok=True)
    write_shards(weights, directory)
    model = strategy.task.model
    model.config.dtype = dtype
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    strategy.task.processor.save_pretrained(directory)


def _weights(strategy: Strategy, config: TrainConfig, dtype: torch.dtype, average: bool) -> Iterator[Weight]:
    """The model's weights under their names in a checkpoint, all of one type. Reading one is collective.

    So every worker must read each once, and in this order: `write_shards` does, because they are of one type.
    """
    trained = set(strategy.trained)

    def value(name: str) -> Tensor:
        if name in trained:
            state = strategy.state(name)
            return state["average" if average else "master"]
        return strategy.weight(name)

    def read(name: str) -> Tensor:
        return merge_adapter(name, value, config.lora).detach().to("cpu", dtype)

    for name, parameter in strategy.task.model.named_parameters(prefix="model"):
        if not is_adapter(name):
            shape = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO-3 leaves an empty tensor where a parameter was
            yield Weight(plain_name(name).removeprefix("model."), tuple(shape), dtype, partial(read, name))
