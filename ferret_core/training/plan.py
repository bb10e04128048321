"""The plan of a run, before anything is loaded: what is trained, what a GPU has to hold, how far the data goes.

    print(make_plan(TrainConfig.load("ferret_core/training/configs/ferret_7b.yaml")))

What cannot fit is refused, with settings that would.

Parameters are counted and activations measured on the meta device: a 13B takes a second and no memory. What is kept of each
parameter follows from how `strategies` and DeepSpeed (ZeRO, arXiv 1910.02054) work; it is exact but for padding. Activations
are those of the longest pack there can be. Tokens are estimated from the text.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ferret_core.checkpoint.bundled import checkpoint_path
from ferret_core.checkpoint.parts import part_of
from ferret_core.data.files import RecordFile
from ferret_core.data.images import Images
from ferret_core.data.mixture import mixture_order
from ferret_core.data.records import Record
from ferret_core.model import FerretConfig, FerretForConditionalGeneration
from ferret_core.prompt import REGION_MENTION, format_bins, write_boxes, write_turns
from ferret_core.training.activations import Activations, measure_activations
from ferret_core.training.adapters import lora_parameters
from ferret_core.training.batches import accumulation_steps, total_steps
from ferret_core.training.config import COMPONENTS, TrainConfig
from ferret_core.training.deepspeed_config import BUCKET, LIVE_PARAMETERS
from ferret_core.training.optimizer import parameter_groups

GIB = 2**30
OVERHEAD = 3 * GIB
"""What no tensor of ours takes: CUDA's context, NCCL's buffers, cuBLAS workspaces, gaps between blocks."""

_SAMPLED_RECORDS = 256  # of each source, to learn how many tokens a character makes
_PIECE = re.compile(r"\d|[^\W\d_]{1,6}|[^\w\s]")  # about a LLaMA token: digits are one each


# ---- a plan ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Part:
    """Parameters of one part of the model."""

    name: str
    trained: int
    frozen: int


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on each GPU, and in CPU memory for each process."""

    weights: int
    """As they are computed with; ZeRO-3 shares them out."""
    gradients: int
    """Float32 sums over micro-batches."""
    optimizer: int
    """Float32 master weights, moments and moving average."""
    activations: int
    """Of the longest pack."""
    communication: int
    """Buckets, and with ZeRO-3 weights that are gathered."""
    update: int
    """Needed after the backward pass, when activations and buckets are gone."""
    overhead: int = OVERHEAD
    """CUDA and NCCL."""
    host: int = 0
    """What is offloaded to CPU memory, by each process."""

    @property
    def peak(self) -> dict[str, int]:
        """What a GPU holds when it holds most, by name: in the backward pass, or in the update after it."""
        backward = {"activations": self.activations, "communication": self.communication}
        passing = max(backward, {"update": self.update}, key=lambda each: sum(each.values()))
        always = {"weights": self.weights, "gradients": self.gradients, "optimizer": self.optimizer}
        return always | passing | {"overhead": self.overhead}

    @property
    def total(self) -> int:
        """The most a GPU holds at any time."""
        return sum(self.peak.values())


@dataclass(frozen=True, kw_only=True)
class Data:
    """One epoch."""

    samples: int
    tokens: int
    """Estimated, image patches included."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will do. `str(plan)` is for people, `plan.to_json()` for programs."""

    config: TrainConfig
    parts: tuple[Part, ...]
    memory: Memory
    available: int
    """Bytes of each GPU."""
    accumulation: int
    """Packs of each process for a step."""
    pack_tokens: int
    """Tokens of the longest pack, image patches included."""
    data: Data | None
    """None if the sources are not here, or made on the fly."""
    steps: int | None
    """None if neither `steps` nor the data says."""
    checkpoint: int
    """Bytes of a checkpoint from which the run can go on: with AdamW 12 for each trained parameter."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; memory in bytes."""
        values = dataclasses.asdict(self)
        return values | {"memory": values["memory"] | {"total": self.memory.total}}

    def __str__(self) -> str:
        config, memory = self.config, self.memory
        lines = [f"{'parameters':<24}{'trained':>16}{'frozen':>16}"]
        total = Part(name="total", trained=sum(p.trained for p in self.parts), frozen=sum(p.frozen for p in self.parts))
        lines += [f"  {part.name.replace('_', ' '):<22}{part.trained:>16,}{part.frozen:>16,}" for part in (*self.parts, total)]
        settings = [config.strategy, f"offload {config.offload}", config.precision]
        settings += ["activation checkpointing"] * config.activation_checkpointing
        lines += ["", f"memory of each GPU, GiB ({', '.join(settings)})"]
        rows = ("weights", "gradients", "optimizer", "activations", "communication", "update", "overhead", "total")
        notes = {"update": "  after the backward pass, where activations were", "overhead": "  CUDA, NCCL"}
        lines += [f"  {row:<22}{_gib(getattr(memory, row)):>16}{notes.get(row, '')}" for row in rows]
        lines += [f"  {'available':<22}{_gib(self.available):>16}"]
        if memory.host:
            host = f"{_gib(memory.host)} GiB for each process, {_gib(memory.host * config.workers)} GiB in all"
            lines += ["", f"CPU memory: {host}"]
        processes = f"{config.workers} {'process takes' if config.workers == 1 else 'processes take'}"
        lines += [
            "",
            f"a step: {config.batch_size} samples; {processes} {self.accumulation} x {config.micro_batch_size} of them, "
            f"at most {self.pack_tokens:,} tokens in a pack",
        ]
        if self.data:
            lines += [f"an epoch: {self.data.samples:,} samples, about {self.data.tokens:,} tokens"]
        if self.steps is None:
            lines += ["steps: unknown until all data.sources are here"]
        else:
            lines += [f"steps: {self.steps:,}, {self.steps * config.batch_size:,} samples"]
            if self.data:
                epochs = self.steps * config.batch_size / self.data.samples
                lines[-1] += f", {epochs:.2f} epochs, about {round(epochs * self.data.tokens):,} tokens"
        copied = f"{_gib(self.checkpoint // config.workers)} in the CPU memory of each process while it is written"
        lines += [f"a checkpoint: {_gib(self.checkpoint)} GiB, {copied}"]
        return "\n".join(lines)


def make_plan(config: TrainConfig) -> Plan:
    """Plans a run; loads no weights.

    Raises:
        ValueError: a GPU cannot hold its share, there is no model configuration at `init`, or the data cannot be read.
    """
    model = _meta_model(config)
    parts = _count(model, config)
    trained, frozen = sum(part.trained for part in parts), sum(part.frozen for part in parts)
    muon = sum(p.numel() for group in parameter_groups(model, config.optimizer) if group["muon"] for p in group["params"])
    moments = 8 * (trained - muon) + 4 * muon  # AdamW has two, Muon one

    @cache
    def activations(samples: int, checkpointing: bool) -> Activations:
        changed = dataclasses.replace(
            config, batch_size=samples, micro_batch_size=samples, activation_checkpointing=checkpointing
        )
        return measure_activations(model, changed)

    def memory(changed: TrainConfig) -> Memory:
        measured = activations(changed.micro_batch_size, changed.activation_checkpointing)
        return estimate_memory(trained, frozen, moments, measured, changed)

    available = _available(config)
    if memory(config).total > available:
        raise ValueError(_refusal(config, memory, available))
    data, steps = _measure_data(config, model.config.num_patches)
    return Plan(
        config=config,
        parts=parts,
        memory=memory(config),
        available=available,
        accumulation=accumulation_steps(config.micro_batches, config.workers),
        pack_tokens=config.micro_batch_size * (config.data.max_length - 1 + model.config.num_patches),
        data=data,
        steps=steps,
        checkpoint=4 * trained + moments + (4 * trained if config.optimizer.ema else 0),
    )


# ---- parameters ------------------------------------------------------------------------------------------------------


def _meta_model(config: TrainConfig) -> FerretForConditionalGeneration:
    """The model of the run in its precision, without values; what is trained requires gradients."""
    path = Path(checkpoint_path(config.init))
    if path.is_dir():
        ferret = FerretConfig.from_pretrained(str(path))
    elif path.is_file():
        ferret = FerretConfig.from_dict(json.loads(path.read_text()))
    else:
        raise ValueError(
            f"init: no checkpoint at {config.init}; make one with `ferret checkpoint assemble`, or to plan without one take "
            "init=ferret_core/model/configs/7b.json"
        )
    with torch.device("meta"):
        model = FerretForConditionalGeneration(ferret)
    model.to(getattr(torch, config.dtype))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in config.train)
    return model


def _count(model: FerretForConditionalGeneration, config: TrainConfig) -> tuple[Part, ...]:
    sizes = {part: sum(p.numel() for name, p in model.named_parameters() if part_of(name) == part) for part in COMPONENTS}
    parts = [
        Part(name=name, trained=size * (name in config.train), frozen=size * (name not in config.train))
        for name, size in sizes.items()
    ]
    if config.lora.rank:
        parts.append(Part(name="lora_adapters", trained=lora_parameters(model, config.lora.rank), frozen=0))
    return tuple(parts)


# ---- memory ----------------------------------------------------------------------------------------------------------


def estimate_memory(trained: int, frozen: int, moments: int, activations: Activations, config: TrainConfig) -> Memory:
    """What each GPU holds.

    Args:
        trained: parameters that are trained.
        frozen: parameters that are not.
        moments: bytes of the optimiser's moments, over all parameters.
        activations: of one pack.
        config: strategy, offload, precision, workers and moving average.
    """
    width = getattr(torch, config.dtype).itemsize
    workers, stage = config.workers, config.zero_stage
    share = 1 / workers if stage else 1.0

    weights = width * (trained + frozen)
    gradients = 4 * trained  # summed in float32, in one place
    optimizer = round((4 * trained + moments + (4 * trained if config.optimizer.ema else 0)) * share)
    update = width * trained  # the .grad of every parameter
    communication = 2 * 4 * min(BUCKET, trained) if stage else 0  # one bucket is filled while the other is exchanged
    if stage >= 2:
        gradients = update = round(gradients * share)  # the update takes a flat copy of them
    if stage == 3:
        communication += width * min(LIVE_PARAMETERS, trained + frozen)
        weights = round(weights * share)
        update = 4 * min(BUCKET, round(trained * share))
    host = 0
    if config.offload != "none":
        host, optimizer = optimizer + 4 * round(trained * share), 0  # gradients go where they are used
        if stage > 1:
            gradients = update = 0
    if config.offload == "all":
        host, weights = host + weights, 0
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations.kept + activations.working,
        communication=communication,
        update=update,
        host=host,
    )


def _available(config: TrainConfig) -> int:
    """Bytes of each GPU; on a CPU, a process's share of the machine."""
    if config.device == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // config.workers
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return int(config.gpu_memory * GIB)


def _refusal(config: TrainConfig, memory: Callable[[TrainConfig], Memory], available: int) -> str:
    need = memory(config)
    parts = ", ".join(f"{name} {_gib(size)}" for name, size in need.peak.items())
    settings = "".join(f"\n  {change}  ({_gib(size)} GiB)" for change, size in _alternatives(config, memory, available))
    advice = f"these would fit:{settings}" if settings else "no setting makes it fit: take more workers or larger GPUs"
    place = "process" if config.device == "cpu" else "GPU"
    return f"each {place} would need {_gib(need.total)} GiB and has {_gib(available)} ({parts}); {advice}"


def _alternatives(config: TrainConfig, memory: Callable[[TrainConfig], Memory], available: int) -> Iterator[tuple[str, int]]:
    """The settings nearest to the given ones that fit: as few changes as possible, the mildest of each kind."""
    halves = [
        config.micro_batch_size >> i for i in range(1, 12) if config.batch_size % max(1, config.micro_batch_size >> i) == 0
    ]
    kinds: list[list[dict[str, Any]]] = [
        [{"activation_checkpointing": True}],
        [{"micro_batch_size": size} for size in halves if size],
        [{"strategy": strategy} for strategy in ("zero1", "zero2", "zero3")],
        [{"offload": place} for place in ("optimizer", "all")],
        [{"workers": config.workers * times} for times in (2, 4, 8)],
    ]
    for count in range(1, len(kinds) + 1):
        found = False
        for chosen in itertools.combinations(kinds, count):
            for changes in itertools.product(*chosen):
                change = {key: value for each in changes for key, value in each.items()}
                try:
                    changed = dataclasses.replace(config, **change)
                except ValueError:  # as workers without a strategy for them
                    continue
                size = memory(changed).total
                if size <= available and all(getattr(config, key) != value for key, value in change.items()):
                    found = True
                    yield " ".join(f"{key}={str(value).lower()}" for key, value in change.items()), size
                    break
        if found:
            return


# ---- data ------------------------------------------------------------------------------------------------------------


def _measure_data(config: TrainConfig, patches: int) -> tuple[Data | None, int | None]:
    """An epoch of the mixture, if all of it is here, and the steps of the run."""
    try:
        sources = [file for source in config.data.sources for file in source.files()]
    except FileNotFoundError:
        return None, config.steps or None
    if not sources or not all(Path(source.path).is_file() for source in sources):
        return None, config.steps or None
    tokens = []
    for source in sources:
        records = RecordFile(source.path, Images(source.images or Path(source.path).parent))
        readable = np.flatnonzero(records.text_lengths)
        pieces = characters = 0
        for i in readable[:: max(1, len(readable) // _SAMPLED_RECORDS)]:
            with suppress(ValueError):  # a bad record is for the run to judge
                pieces += _pieces(records[int(i)])
                characters += int(records.text_lengths[i])
        tokens.append(np.minimum(pieces / max(1, characters) * records.text_lengths, config.data.max_length - 1) + patches)
    order = mixture_order([len(each) for each in tokens], [source.weight for source in sources], random.Random(config.seed))
    data = Data(samples=len(order), tokens=round(float(np.concatenate(tokens)[order].sum())))
    return data, total_steps(config, order)


def _pieces(record: Record) -> int:
    """About how many text tokens a record makes."""
    text = write_boxes(write_turns(record.turns, has_image=False), record.boxes, record.size)
    outlines = record.outlines
    return len(_PIECE.findall(REGION_MENTION.sub(lambda match: format_bins(outlines[int(match[1])], record.size), text)))


def _gib(size: int) -> str:
    return f"{size / GIB:,.1f}"
