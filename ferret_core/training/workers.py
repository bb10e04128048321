"""The processes of a run, and what they tell each other.

Whoever started them (Ray Train, torchrun, nobody) is told by torch.distributed's usual state and environment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ferret_core.model import default_device
from ferret_core.training.config import TrainConfig

PATIENCE = timedelta(hours=3)
"""How long workers wait for each other, as at the end for the first one to send the model to a bucket."""


@dataclass(frozen=True)
class Workers:
    """This process among those of the run."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    @contextmanager
    def join(cls, config: TrainConfig) -> Iterator[Workers]:
        """Meets the others; parts with them at the end, unless somebody else had them meet.

        Raises `ValueError` if there are several and the strategy is for one.
        """
        kind = default_device() if config.device == "auto" else config.device
        world = dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))
        if config.strategy == "single":
            if world > 1:
                raise ValueError(f"strategy: `single` is one process, but there are {world}; take ddp, zero1, zero2 or zero3")
            yield cls(0, 1, torch.device(kind))
            return
        index = int(os.environ.get("LOCAL_RANK", "0"))
        device = torch.device(kind, index % torch.cuda.device_count()) if kind == "cuda" else torch.device(kind)
        if kind == "cuda":
            torch.cuda.set_device(device)
        backend = "nccl" if kind == "cuda" else "gloo"
        ours = not dist.is_initialized()
        if ours and world == 1:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        elif ours:
            dist.init_process_group(backend, timeout=PATIENCE)
        try:
            yield cls(dist.get_rank(), dist.get_world_size(), device)
        finally:
            if ours:
                dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this is the one that speaks for all."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of everybody's values, on the CPU in float64."""
        if self.world == 1:
            return values.double().cpu()
        values = values.double().to(self.device)
        dist.all_reduce(values)
        return values.cpu()

    def agree(self, value: Any) -> Any:
        """The first worker's value, for all."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]
