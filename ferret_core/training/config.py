"""Configuration of a training run: one frozen dataclass, read from YAML, overridden by KEY=VALUE."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run. Every field can stand in the YAML file, or follow it on the command line as KEY=VALUE."""

    output: str
    """Directory of the run: checkpoint, metrics, final model. A run that finds its own checkpoint there goes on from it."""
    init: str
    """What to start from: a checkpoint directory, or a `config.json` for random weights."""
    tokenizer: str | None = None
    """Directory of the tokenizer; `init` by default."""
    task: Literal["dense", "instruct"] = "instruct"
    """`dense` teaches the vision tower alone what is where; `instruct` teaches the whole model to answer."""
    steps: int = 10_000
    """Optimiser steps of the whole run."""
    batch_size: int = 16
    """Images a step."""
    turns: int = 7
    """Questions about each image."""
    max_length: int = 2048
    """Most tokens of a sample; the last questions of a longer conversation are left out."""
    name_weight: float = 0.0
    """Weight, in `instruct`, of the losses for naming what every patch and every region shows."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """`muon` updates the matrices inside the network with Muon, the rest with AdamW."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    muon_learning_rate: float = 3e-3
    """Peak learning rate of Muon."""
    vision_learning_rate_factor: float = 1.0
    """Scales both for the vision tower while the whole model is trained; 0 freezes it."""
    warmup_steps: int = 200
    """Steps of linear warm-up."""
    decay_steps: int = 2_000
    """Steps of linear decay to zero at the end; in between the rate is constant, so a run can be prolonged."""
    weight_decay: float = 0.01
    """Decoupled weight decay, on matrices only."""
    beta2: float = 0.98
    """AdamW's second-moment decay."""
    clip: float = 1.0
    """Largest gradient norm."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16` computes in bfloat16 and keeps float32 master weights."""
    device: str = "auto"
    """`cpu`, `cuda`, or the better one there is."""
    workers: int = 1
    """Processes that make samples."""
    seed: int = 0
    """Of the initial weights. The data depend on the step alone."""
    first_scene: int = 0
    """Index of the first training scene: another stage need not see the same ones again."""
    save_minutes: float = 10.0
    """Minutes between checkpoints; one is also written at the end and on SIGTERM or SIGINT."""
    eval_steps: int = 500
    """Steps between evaluations on the validation split."""
    eval_examples: int = 64
    """Validation images."""
    log_steps: int = 20
    """Steps between lines of `metrics.jsonl`."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name}: must be one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}")
        for name in ("steps", "batch_size", "turns", "workers", "eval_steps", "eval_examples", "log_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.warmup_steps + self.decay_steps > self.steps:
            raise ValueError(f"warmup_steps + decay_steps must be at most steps = {self.steps}")

    @classmethod
    def load(cls, path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> TrainConfig:
        """From a YAML file and KEY=VALUE overrides. Raises `ValueError` for what it does not know."""
        values: dict[str, Any] = yaml.safe_load(Path(path).read_text()) or {}
        for override in overrides:
            key, separator, value = override.partition("=")
            if not separator:
                raise ValueError(f"{override!r}: write KEY=VALUE")
            values[key] = yaml.safe_load(value)
        types = get_type_hints(cls)
        for key, value in values.items():
            if key not in types:
                raise ValueError(f"{key}: no such setting; known: {', '.join(types)}")
            if types[key] is float and isinstance(value, int | str):
                values[key] = float(value)  # YAML reads 3e-4 as text
            if types[key] in (int, float, str) and not isinstance(values[key], types[key]):
                raise ValueError(f"{key}: must be {types[key].__name__}, got {value!r}")
        return cls(**values)

    def learning_rate_factor(self, step: int) -> float:
        """Share of the peak learning rate at a step: linear warm-up, plateau, linear decay."""
        return max(0.0, min(1.0, (step + 1) / max(1, self.warmup_steps), (self.steps - step) / max(1, self.decay_steps)))
