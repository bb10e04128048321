"""How processes share the work of a step.

    strategy = build_strategy(task, config, workers)
    means, norm = strategy.step([MicroBatch(batch, scales, seed), ...], learning_rate_factor)

* `LocalStrategy` (`single`, `ddp`): every process has the whole model; gradients are summed in float32.
* `DeepSpeedStrategy` (`zero1`, `zero2`, `zero3`): optimiser states, gradients too, parameters too are sharded.

State is exchanged parameter by parameter, whole and in float32, whatever the strategy: a checkpoint of one is a checkpoint
for all, with any number of workers.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ferret_core.model.region_encoder import SamplerStage
from ferret_core.training.config import TrainConfig
from ferret_core.training.optimizer import MasterOptimizer, adamw, parameter_groups
from ferret_core.training.tasks import Batch, Means, Task
from ferret_core.training.workers import Workers


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What goes through the model at once."""

    batch: Batch
    scales: dict[str, float]
    """What the sums of its losses are multiplied by."""
    seed: int
    """Of dropout."""


class Strategy(ABC):
    """A task's model, trained together with the other workers. Methods marked collective must be called by all of them."""

    def __init__(self, task: Task, workers: Workers) -> None:
        self.task, self.workers = task, workers
        self.trained = [name for name, parameter in task.named_parameters() if parameter.requires_grad]

    @abstractmethod
    def step(self, micro_batches: Sequence[MicroBatch], factor: float) -> tuple[list[Means], float]:
        """One update at `factor` times the peak learning rates. Collective.

        Returns each micro-batch's means, and the norm of the gradient.
        """

    @abstractmethod
    def evaluate(self, batch: Batch) -> Means:
        """A batch's means. Collective."""

    @abstractmethod
    def weight(self, name: str) -> Tensor:
        """A parameter, whole, in the model's dtype. Collective."""

    @abstractmethod
    def state(self, name: str) -> dict[str, Tensor]:
        """What is kept of a trained parameter, whole, in float32: `master`, moments, `average`. Collective."""

    @abstractmethod
    def load_state(self, states: dict[str, dict[str, Tensor]], step: int) -> None:
        """Goes on from the states of all trained parameters after `step` updates. Collective."""


class LocalStrategy(Strategy):
    """The whole model in every process; gradients are summed before the update."""

    def __init__(self, task: Task, config: TrainConfig, workers: Workers) -> None:
        super().__init__(task, workers)
        task.to(workers.device)
        for parameter in task.parameters():  # not the buffers: rotary frequencies must stay exact
            parameter.data = parameter.data.to(getattr(torch, config.dtype))
        if workers.device.type == "cpu":
            task.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = MasterOptimizer(task, config.optimizer)

    def step(self, micro_batches: Sequence[MicroBatch], factor: float) -> tuple[list[Means], float]:
        means = []
        for each in micro_batches:
            torch.manual_seed(each.seed)
            loss, mean = self.task(each.batch, each.scales)
            loss.backward()
            self.optimizer.accumulate()
            means.append(mean)
        if self.workers.world > 1:
            dist.all_reduce(self.optimizer.gradients)
        return means, self.optimizer.step(factor)

    def evaluate(self, batch: Batch) -> Means:
        return self.task(batch, dict.fromkeys(self.task.weights, 0.0))[1]

    def weight(self, name: str) -> Tensor:
        return self.task.get_parameter(name)

    def state(self, name: str) -> dict[str, Tensor]:
        return self.optimizer.state(name)

    def load_state(self, states: dict[str, dict[str, Tensor]], step: int) -> None:
        for name, state in states.items():
            self.optimizer.load_state(name, state, step)
        self.optimizer.write_back()


class DeepSpeedStrategy(Strategy):
    """DeepSpeed's ZeRO, stages 1 to 3."""

    def __init__(self, task: Task, config: TrainConfig, workers: Workers) -> None:
        super().__init__(task, workers)
        deepspeed = import_deepspeed(workers.device)
        from ferret_core.training.deepspeed_config import deepspeed_config

        self.stage = config.zero_stage
        if self.stage == 3 and any(isinstance(module, SamplerStage) for module in task.modules()):
            deepspeed.utils.set_z3_leaf_modules(task, [SamplerStage])  # which uses its layers' weights in an order of its own
        exact = {name: buffer.clone() for name, buffer in task.named_buffers()}
        groups = parameter_groups(task, config.optimizer)
        self.peaks = [group["lr"] for group in groups]
        self.engine, *_ = deepspeed.initialize(
            model=task.to(workers.device) if self.stage < 3 else task,
            optimizer=adamw(groups, config.optimizer),
            config=deepspeed_config(config, workers.world),
            dist_init_required=False,
        )
        for name, buffer in task.named_buffers():  # DeepSpeed rounds rotary frequencies, too
            buffer.data = exact[name].to(buffer.device)
        self.optimizer = self.engine.optimizer

    def step(self, micro_batches: Sequence[MicroBatch], factor: float) -> tuple[list[Means], float]:
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        means = []
        for each in micro_batches:
            torch.manual_seed(each.seed)
            loss, mean = self.engine(each.batch, each.scales)
            # DeepSpeed takes the mean over workers: our losses are shares of a sum.
            self.engine.backward(loss * self.workers.world, scale_wrt_gas=False)
            self.engine.step()
            means.append(mean)
        return means, float(self.engine.get_global_grad_norm())

    def evaluate(self, batch: Batch) -> Means:
        return self.engine(batch, dict.fromkeys(self.task.weights, 0.0))[1]

    def weight(self, name: str) -> Tensor:
        import deepspeed

        parameter = self.task.get_parameter(name)
        with deepspeed.zero.GatheredParameters([parameter], enabled=self.stage == 3):
            return parameter.detach().clone()

    def state(self, name: str) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        parameter = self.task.get_parameter(name)
        moments = {key: safe_get_full_optimizer_state(parameter, key) for key in ("exp_avg", "exp_avg_sq")}
        return {"master": safe_get_full_fp32_param(parameter)} | moments

    def load_state(self, states: dict[str, dict[str, Tensor]], step: int) -> None:
        adam = self.optimizer.optimizer
        if self.stage == 3:
            pieces = self.optimizer.fp32_partitioned_groups_flat
        else:
            pieces = [piece for group in adam.param_groups for piece in group["params"]]
        for piece in pieces:  # as the first update would have made them
            adam.state[piece] = {
                "step": torch.tensor(float(step), device=piece.device),
                "exp_avg": torch.zeros_like(piece),
                "exp_avg_sq": torch.zeros_like(piece),
            }
        if self.stage < 3:
            self.optimizer._lazy_init_hp_params_optimizer_state()
        for name, state in states.items():
            self._set(self.task.get_parameter(name), state)
        if self.stage < 3:
            self.optimizer.update_lp_params()
        else:
            for i in range(len(self.optimizer.fp16_groups)):
                self.optimizer._reassign_or_swap_out_partitioned_parameters(i)

    def _set(self, parameter: nn.Parameter, state: dict[str, Tensor]) -> None:
        from deepspeed import utils

        values = {key: value.float() for key, value in state.items() if key != "average"}
        if self.stage < 3:
            utils.safe_set_full_fp32_param(parameter, values.pop("master"))
            for key, value in values.items():
                utils.safe_set_full_optimizer_state(parameter, value, key)
            return
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined] # of each worker's piece, the last one padded
        pieces = {
            key: nn.functional.pad(value.flatten(), (0, size * self.workers.world - value.numel())).split(size)
            for key, value in values.items()
        }
        utils.safe_set_local_fp32_param(parameter, pieces.pop("master")[self.workers.rank])
        for key, value in pieces.items():
            utils.safe_set_local_optimizer_state(parameter, value[self.workers.rank], key)


def build_strategy(task: Task, config: TrainConfig, workers: Workers) -> Strategy:
    """The strategy that the configuration names."""
    kind = DeepSpeedStrategy if config.zero_stage else LocalStrategy
    return kind(task, config, workers)


def import_deepspeed(device: torch.device) -> Any:
    """The deepspeed package, told what it runs on. Raises `RuntimeError` if it is not installed."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        import deepspeed
        import deepspeed.ops
    except ModuleNotFoundError as error:
        raise RuntimeError("strategies zero1, zero2 and zero3 need DeepSpeed: pip install 'ferret-platform[train]'") from error
    if device.type == "cpu":  # its shared-memory exchange would be compiled, for half a minute, and only if there is ninja
        deepspeed.ops.__dict__["__compatible_ops__"] = {}
    return deepspeed
