"""Optimiser: Muon for the matrices inside the network, AdamW for the rest, over float32 master weights.

Orthogonalised updates (Muon) reach a given loss on the playground in a fraction of AdamW's steps (docs/playground.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ferret_core.training.config import TrainConfig


class MasterOptimizer:
    """Updates float32 copies of the trained parameters, which themselves may be bfloat16.

    A convolution's kernel is optimised as the matrix `(out, in * k * k)`.
    """

    def __init__(self, module: nn.Module, config: TrainConfig) -> None:
        inner = _inner_matrices(module) if config.optimizer == "muon" else set()
        vision_factor = config.vision_learning_rate_factor if config.task == "instruct" else 1.0
        self.clip = config.clip
        self.parameters: dict[str, nn.Parameter] = {}
        self.masters: dict[str, torch.Tensor] = {}
        groups: dict[tuple[bool, float, float], list[torch.Tensor]] = {}
        for name, parameter in module.named_parameters():
            factor = vision_factor if "vision_tower" in name else 1.0
            parameter.requires_grad_(factor > 0)
            if factor == 0:
                continue
            muon = name in inner
            master = parameter.detach().float().clone(memory_format=torch.contiguous_format)
            master = master.flatten(1) if muon else master
            self.parameters[name], self.masters[name] = parameter, master
            rate = factor * (config.muon_learning_rate if muon else config.learning_rate)
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((muon, rate, decay), []).append(master)

        def of(muon: bool) -> list[dict[str, Any]]:
            return [
                {"params": masters, "lr": rate, "weight_decay": decay}
                for (is_muon, rate, decay), masters in groups.items()
                if is_muon == muon
            ]

        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(of(muon=False), betas=(0.9, config.beta2), fused=True)
        ]
        if of(muon=True):
            self.optimizers.append(torch.optim.Muon(of(muon=True), adjust_lr_fn="match_rms_adamw"))
        self.peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]

    @torch.no_grad()
    def step(self, factor: float) -> float:
        """One update at `factor` times the peak learning rates; clears the gradients and returns their norm."""
        for name, parameter in self.parameters.items():
            master = self.masters[name]
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            master.grad = gradient.float().reshape(master.shape)
            parameter.grad = None
        norm = nn.utils.clip_grad_norm_(self.masters.values(), self.clip)
        for optimizer, peaks in zip(self.optimizers, self.peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            optimizer.step()
        self.write_back()
        return float(norm)

    @torch.no_grad()
    def write_back(self) -> None:
        """Gives the parameters their masters' values, in whatever dtype the parameters have."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self.masters[name].view(parameter.shape))

    def state_dict(self) -> dict[str, Any]:
        """Master weights and moments."""
        return {"masters": self.masters, "optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`; the learning rates stay this run's."""
        for name, master in self.masters.items():
            master.copy_(state["masters"][name])
        self.write_back()
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def _inner_matrices(module: nn.Module) -> set[str]:
    """Weights of linear and convolution layers, but for the last one, which faces the labels."""
    return {
        f"{name}.weight"
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and "head" not in name
    }
