"""Configuration of a training run: frozen dataclasses, read from YAML, overridden by KEY=VALUE.

    TrainConfig.load("ferret_core/training/configs/playground.yaml", ["optimizer.learning_rate=1e-4"])

The docstring under each field is its help: `ferret train --help` prints them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from ferret_core.data.config import DataConfig
from ferret_core.training.settings import describe_fields, from_values, read_values

Component = Literal["vision_tower", "projector", "region_encoder", "decoder"]
COMPONENTS: tuple[Component, ...] = ("vision_tower", "projector", "region_encoder", "decoder")


@dataclass(frozen=True, kw_only=True)
class PlaygroundConfig:
    """What is learned in the playground, whose scenes are made on the fly."""

    turns: int = 7
    """Questions about each scene."""
    first_scene: int = 0
    """Index of the first training scene; another stage need not see the same ones again."""
    style: Literal["3d", "flat", "ink", "comic", "mixed"] = "mixed"
    """How things are drawn in training scenes; `mixed` is all of these in any colours."""
    name_weight: float = 0.0
    """Weight of the losses for naming what every patch and every region shows."""
    look_weight: float = 0.0
    """Weight of the losses for looking at what is named and at what is boxed."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How weights are updated."""

    name: Literal["adamw", "muon"] = "adamw"
    """`muon` updates the matrices inside the network with Muon and the rest with AdamW; strategies `single` and `ddp` only."""
    learning_rate: float = 2e-5
    """Peak learning rate of AdamW."""
    muon_learning_rate: float = 3e-3
    """Peak learning rate of Muon."""
    vision_factor: float = 1.0
    """Scales both for the vision tower."""
    weight_decay: float = 0.0
    """Decoupled weight decay, on matrices only."""
    beta1: float = 0.9
    """AdamW's first-moment decay."""
    beta2: float = 0.999
    """AdamW's second-moment decay."""
    clip: float = 1.0
    """Largest gradient norm; 0 does not clip."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, which is exported beside them; 0 keeps none."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate runs."""

    name: Literal["cosine", "trapezoid"] = "cosine"
    """After a linear warm-up, a cosine to zero, or a plateau and a linear decay: a trapezoid can be prolonged."""
    warmup: float = 0.03
    """Warm-up: steps, or a share of all steps if below 1."""
    decay: float = 0.25
    """The trapezoid's decay: steps, or a share of all steps if below 1."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters on the decoder's linear layers, instead of training the decoder itself."""

    rank: int = 0
    """Rank of the adapters; 0 for none."""
    alpha: float = 256.0
    """Their scale, divided by the rank."""
    dropout: float = 0.05
    """Dropout on their inputs."""

    @property
    def scale(self) -> float:
        """What they are multiplied by; there must be some."""
        return self.alpha / self.rank


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is kept of a run, so that it can go on."""

    minutes: float = 10.0
    """Time between checkpoints; one is also written at the end and on SIGTERM or SIGINT."""
    steps: int = 0
    """Steps between checkpoints; 0 goes by time alone."""
    keep_last: int = 2
    """Newest checkpoints kept."""
    keep_best: int = 1
    """Checkpoints kept beside them for the lowest validation loss."""

    def __post_init__(self) -> None:
        if self.keep_last < 1 or self.keep_best < 0:
            raise ValueError("checkpoint.keep_last must be at least 1, checkpoint.keep_best at least 0")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run. Every field can stand in the YAML file, or follow it on the command line as KEY=VALUE."""

    output: str
    """Directory of the run, or s3://BUCKET/PREFIX. A run that finds its own checkpoint there goes on from it."""
    init: str
    """What to start from: a checkpoint's directory or bundled name, or a `config.json` for random weights."""
    tokenizer: str | None = None
    """Directory of the tokenizer; `init` by default."""
    task: Literal["instruct", "playground", "playground_dense"] = "instruct"
    """`instruct` learns the answers of grounded conversations; `playground` the same, in the playground, with hints that only
    it can give; `playground_dense` teaches the vision tower alone what is where."""
    train: tuple[Component, ...] = ("projector", "region_encoder", "decoder")
    """The parts of the model that are trained; the others are frozen."""
    data: DataConfig = field(default_factory=DataConfig)
    """What is learned from."""
    playground: PlaygroundConfig = field(default_factory=PlaygroundConfig)
    """What is learned in the playground, by the tasks of that name."""
    steps: int = 0
    """Optimiser steps of the whole run; 0 goes by `epochs`."""
    epochs: float = 3.0
    """Passes over the data, if `steps` is 0."""
    batch_size: int = 128
    """Samples of one optimiser step, over all processes: the same whatever their number."""
    micro_batch_size: int = 4
    """Samples that go through the model at once, packed one after the other without padding."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """How weights are updated."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """How the learning rate runs."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Low-rank adapters."""
    strategy: Literal["single", "ddp", "zero1", "zero2", "zero3"] = "single"
    """How processes share the work: alone; with a copy each; or with optimiser states, gradients too, parameters too sharded by
    DeepSpeed."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What DeepSpeed keeps in CPU memory: optimiser states, or with `zero3` parameters too."""
    workers: int = 1
    """Training processes, one for each GPU."""
    min_workers: int = 0
    """The fewest that a Ray run goes on with when nodes are lost; 0 waits for all `workers`."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """`bf16` computes in bfloat16 and keeps float32 master weights."""
    activation_checkpointing: bool = False
    """Recompute the decoder's layers in the backward pass instead of keeping what they computed."""
    attention: Literal["auto", "packed", "flash_attention_2"] = "auto"
    """`packed` is PyTorch's; `auto` takes FlashAttention where it is installed and the device is a GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`cpu`, `cuda`, or the better one there is."""
    seed: int = 0
    """Of initial weights, the order of the data and every choice in it."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """What is kept of the run."""
    max_failures: int = 3
    """How often a Ray run starts again after losing a worker or a node."""
    eval_steps: int = 500
    """Steps between evaluations on the held-out split."""
    eval_samples: int = 64
    """Held-out samples."""
    log_steps: int = 20
    """Steps between lines of `metrics.jsonl`."""
    gpu_memory: float = 80.0
    """GiB of each GPU, for `--dry-run` on a machine without one."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "micro_batch_size", "workers", "eval_steps", "eval_samples", "log_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size: must divide batch_size = {self.batch_size}, got {self.micro_batch_size}")
        for name in ("steps", "epochs", "max_failures"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must not be negative, got {getattr(self, name)}")
        if self.task == "instruct" and not self.data.sources:
            raise ValueError("data.sources: task `instruct` needs at least one; `playground` makes its own data")
        if self.task != "instruct" and (self.data.sources or self.data.validation):
            raise ValueError(f"data.sources: task `{self.task}` makes its own data; leave them out, or take task=instruct")
        if self.task != "instruct" and not self.steps:
            raise ValueError(f"steps: needed, since task `{self.task}` has no end of data for epochs to count")
        if self.task == "instruct" and not self.steps and not self.epochs:
            raise ValueError("epochs: must be above 0, or steps")
        if not 0 <= self.min_workers <= self.workers:
            raise ValueError(f"min_workers: must be in [0, workers = {self.workers}], got {self.min_workers}")
        if self.strategy == "single" and self.workers > 1:
            raise ValueError("strategy: `single` is one process; take ddp, zero1, zero2 or zero3 for workers > 1")
        zero = self.zero_stage > 0
        if zero and self.optimizer.name == "muon":
            raise ValueError("optimizer.name: muon needs whole matrices; take strategy single or ddp, or adamw")
        if zero and self.optimizer.ema:
            raise ValueError("optimizer.ema: is kept by strategies single and ddp only")
        if not zero and self.offload != "none":
            raise ValueError(f"offload: needs a zero strategy, got {self.strategy}")
        if self.offload == "all" and self.strategy != "zero3":
            raise ValueError(f"offload: `all` needs strategy zero3, got {self.strategy}")
        if self.lora.rank and "decoder" in self.train:
            raise ValueError("train: leave out decoder, whose weights stay as they are under lora.rank > 0")
        if not self.train and not self.lora.rank:
            raise ValueError("train: name at least one part of the model")

    @property
    def zero_stage(self) -> int:
        """DeepSpeed's, 1 to 3; 0 without it."""
        return int(self.strategy.removeprefix("zero")) if self.strategy.startswith("zero") else 0

    @property
    def micro_batches(self) -> int:
        """Of a step, over all workers."""
        return self.batch_size // self.micro_batch_size

    @property
    def dtype(self) -> str:
        """Of the weights that are computed with: a name of torch's."""
        return "bfloat16" if self.precision == "bf16" else "float32"

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
        """From a YAML file and KEY=VALUE overrides. Raises `ValueError` for what it does not know."""
        return from_values(cls, read_values(path, overrides))

    def to_values(self) -> dict[str, Any]:
        """Plain values, as a YAML file would have them."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def to_yaml(self) -> str:
        """As the text of such a file."""
        return yaml.safe_dump(self.to_values(), sort_keys=False)


def describe() -> Iterator[tuple[str, str, Any]]:
    """Every setting of a run as (dotted key, help, default), in order."""
    return describe_fields(TrainConfig)
