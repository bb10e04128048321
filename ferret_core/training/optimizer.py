"""Optimisers: AdamW, or Muon for the matrices inside the network and AdamW for the rest, over float32 master weights.

Orthogonalised updates (Muon) reach a given loss on the playground in a fraction of AdamW's steps (docs/playground.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ferret_core.training.config import OptimizerConfig


def parameter_groups(module: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """The trained parameters by how they are updated: `names`, `params`, `lr`, `weight_decay` and whether by `muon`."""
    inner = _inner_matrices(module) if config.name == "muon" else set()
    groups: dict[tuple[bool, float, float], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        muon = name in inner
        rate = config.muon_learning_rate if muon else config.learning_rate
        rate *= config.vision_factor if "vision_tower" in name else 1.0
        decay = config.weight_decay if parameter.ndim > 1 else 0.0
        group = groups.setdefault(
            (muon, rate, decay), {"muon": muon, "lr": rate, "weight_decay": decay, "names": [], "params": []}
        )
        group["names"].append(name)
        group["params"].append(parameter)
    return list(groups.values())


def adamw(groups: Iterable[dict[str, Any]], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over groups of `parameter_groups`."""
    keys = ("params", "lr", "weight_decay")
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW([{key: group[key] for key in keys} for group in groups], betas=betas, fused=True)


class MasterOptimizer:
    """Updates float32 copies of the trained parameters, which themselves may be bfloat16.

    Gradients are summed in float32 too, over micro-batches and over workers. A convolution's kernel is optimised by Muon as
    the matrix `(out, in * k * k)`.
    """

    def __init__(self, module: nn.Module, config: OptimizerConfig) -> None:
        self.config = config
        self.parameters: dict[str, nn.Parameter] = {}
        self.masters: dict[str, Tensor] = {}
        self.averages: dict[str, Tensor] = {}
        groups = parameter_groups(module, config)
        for group in groups:
            masters = []
            for name, parameter in zip(group["names"], group["params"], strict=True):
                master = parameter.detach().float().clone(memory_format=torch.contiguous_format)
                masters.append(master.flatten(1) if group["muon"] else master)
                self.parameters[name], self.masters[name] = parameter, masters[-1]
            group["params"] = masters
        if config.ema:
            self.averages = {name: master.clone() for name, master in self.masters.items()}
        device = next(iter(self.masters.values())).device
        self.gradients = torch.zeros(sum(master.numel() for master in self.masters.values()), device=device)
        start = 0
        for master in self.masters.values():  # one buffer: one exchange between workers
            master.grad = self.gradients[start : start + master.numel()].view_as(master)
            start += master.numel()

        muon = [{key: group[key] for key in ("params", "lr", "weight_decay")} for group in groups if group["muon"]]
        others = [group for group in groups if not group["muon"]]
        self.optimizers: list[torch.optim.Optimizer] = [adamw(others, config)] if others else []
        if muon:
            self.optimizers.append(torch.optim.Muon(muon, adjust_lr_fn="match_rms_adamw"))
        self.peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]

    @torch.no_grad()
    def accumulate(self) -> None:
        """Takes over the parameters' gradients, and clears them."""
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                gradient = self.masters[name].grad
                assert gradient is not None
                gradient += parameter.grad.reshape(gradient.shape)
                parameter.grad = None

    @torch.no_grad()
    def step(self, factor: float) -> float:
        """One update at `factor` times the peak learning rates; clears the gradients and returns their norm.

        If that is not finite, nothing is updated.
        """
        norm = self.gradients.norm()
        if not norm.isfinite():  # one bad batch must not cost the weights
            self.gradients.zero_()
            return float(norm)
        if self.config.clip:
            self.gradients.mul_((self.config.clip / (norm + 1e-6)).clamp(max=1.0))
        for optimizer, peaks in zip(self.optimizers, self.peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            optimizer.step()
        self.gradients.zero_()
        self.write_back()
        for name, average in self.averages.items():
            average.lerp_(self.masters[name], 1 - self.config.ema)
        return float(norm)

    @torch.no_grad()
    def write_back(self) -> None:
        """Gives the parameters their masters' values, in whatever dtype the parameters have."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self.masters[name].view(parameter.shape))

    def state(self, name: str) -> dict[str, Tensor]:
        """Everything kept of a parameter, in its own shape: master weight, moments and moving average."""
        master = self.masters[name]
        moments = {
            key: value
            for optimizer in self.optimizers
            for key, value in optimizer.state.get(master, {}).items()
            if key != "step"
        }
        average = {"average": self.averages[name]} if self.averages else {}
        return {key: value.view(self.parameters[name].shape) for key, value in ({"master": master} | moments | average).items()}

    @torch.no_grad()
    def load_state(self, name: str, state: dict[str, Tensor], step: int) -> None:
        """Inverse of `state`, after `step` updates."""
        master = self.masters[name]
        values = {key: value.to(master).reshape(master.shape) for key, value in state.items()}
        master.copy_(values.pop("master"))
        average = values.pop("average", master)
        if self.averages:
            self.averages[name].copy_(average)
        for optimizer in self.optimizers:
            if any(master is each for group in optimizer.param_groups for each in group["params"]):
                count = (
                    {} if isinstance(optimizer, torch.optim.Muon) else {"step": torch.tensor(float(step), device=master.device)}
                )
                optimizer.state[master] = values | count


def _inner_matrices(module: nn.Module) -> set[str]:
    """Weights of linear and convolution layers, but for the last one, which faces the labels."""
    return {
        f"{name}.weight"
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and "head" not in name
    }
