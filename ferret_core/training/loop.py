"""The training loop: one process, one device, resumable.

    train(TrainConfig.load("configs/playground.yaml", ["steps=2000"]))

The batch of a step depends on the step alone, so a run that was stopped goes on as if it had not been.
A run's directory holds

    metrics.jsonl       one line every `log_steps`, and one for each evaluation
    checkpoint/         the newest state: model, optimiser, step
    model/              the final model, in the run's precision, and its processor: for `FerretPredictor.from_pretrained`
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoTokenizer

from ferret_core.model import FerretConfig, FerretForConditionalGeneration, FerretProcessor, default_device
from ferret_core.prompt import REGION_TOKEN
from ferret_core.training.config import TrainConfig
from ferret_core.training.number_code import initialize_numbers
from ferret_core.training.optimizer import MasterOptimizer
from ferret_core.training.tasks import TASKS, Batch, Task


def train(config: TrainConfig) -> Path:
    """Runs, or resumes, a training run. Returns the directory of the final model."""
    device = torch.device(default_device() if config.device == "auto" else config.device)
    torch.manual_seed(config.seed)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)

    model, processor = load_model(config)
    task: Task = TASKS[config.task](model, processor, config)
    task.module.to(device)
    if config.precision == "bf16":
        for parameter in task.module.parameters():  # not the buffers: rotary frequencies must stay exact
            parameter.data = parameter.data.bfloat16()
    if device.type == "cpu":
        task.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = MasterOptimizer(task.module, config)
    checkpoint = output / "checkpoint" / "state.pt"
    step = _resume(checkpoint, task.module, optimizer)

    with (
        (output / "metrics.jsonl").open("a", buffering=1) as log,
        tqdm(total=config.steps, initial=step, unit="step") as bar,
        StopSignal() as stop,
    ):
        means, since = Means(), time.monotonic()
        saved_at = since
        for batch in _batches(task, config, step):
            task.module.train()
            loss, metrics = task.loss(_to_device(batch, device, task.module))
            loss.backward()
            norm = optimizer.step(config.learning_rate_factor(step))
            step += 1
            means.add({"loss": loss.item(), "gradient_norm": norm, **metrics})
            bar.update()
            if step % config.log_steps == 0:
                seconds, since = time.monotonic() - since, time.monotonic()
                speed = means.count * config.batch_size / seconds
                line = means.pop()
                bar.set_postfix({name: line[name] for name in ("loss", *metrics)})
                log.write(json.dumps({"step": step, **line, "images_per_second": round(speed, 2)}) + "\n")
            if step % config.eval_steps == 0 or step == config.steps:
                scores = {f"validation_{name}": value for name, value in evaluate(task, config, device).items()}
                log.write(json.dumps({"step": step, **scores}) + "\n")
            if stop.received or step == config.steps or time.monotonic() - saved_at > 60 * config.save_minutes:
                _save(checkpoint, task.module, optimizer, step)
                saved_at = time.monotonic()
            if stop.received:
                raise SystemExit(f"stopped at step {step}; the same command goes on from there")
    model.save_pretrained(output / "model")
    processor.save_pretrained(output / "model")
    return output / "model"


def load_model(config: TrainConfig) -> tuple[FerretForConditionalGeneration, FerretProcessor]:
    """The model to start from, float32, and its processor."""
    init = Path(config.init)
    if init.is_dir():
        return (
            FerretForConditionalGeneration.from_pretrained(str(init), dtype=torch.float32),
            FerretProcessor.from_pretrained(str(init)),
        )
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer or str(init.parent))
    ferret = FerretConfig.from_dict(json.loads(init.read_text()))
    ferret.text_config.vocab_size = len(tokenizer)
    ferret.region_token_id = tokenizer.convert_tokens_to_ids(REGION_TOKEN)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(ferret.text_config, name, getattr(tokenizer, name))
    model = FerretForConditionalGeneration(ferret)
    initialize_numbers(model, tokenizer)
    return model, FerretProcessor.for_config(ferret, tokenizer)


class Means:
    """Running means of metrics."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, metrics: dict[str, float], count: int = 1) -> None:
        """Takes the metrics of `count` more."""
        self.count += count
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * count

    def pop(self) -> dict[str, float]:
        """The means so far, to four decimals; starts anew."""
        means = {name: round(value / self.count, 4) for name, value in self.sums.items()}
        self.sums, self.count = {}, 0
        return means


class StopSignal:
    """Notes SIGTERM and SIGINT while it is open, so that the loop can save before it ends."""

    def __enter__(self) -> StopSignal:
        self.received = False
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, *_: object) -> None:
        self.received = True


@torch.no_grad()
def evaluate(task: Task, config: TrainConfig, device: torch.device) -> dict[str, float]:
    """Mean loss and metrics over the first `eval_examples` validation scenes."""
    task.module.eval()
    scenes = range(config.eval_examples)
    means = Means()
    for batch in DataLoader(
        task.dataset("validation", config), batch_size=config.batch_size, sampler=scenes, collate_fn=task.collate
    ):
        loss, metrics = task.loss(_to_device(batch, device, task.module))
        means.add({"loss": loss.item(), **metrics}, len(batch["pixel_values"]))
    return means.pop()


def _batches(task: Task, config: TrainConfig, step: int) -> Iterator[Batch]:
    """The batches of steps `step`, `step + 1`, ... up to the end of the run."""
    scenes = range(config.first_scene + step * config.batch_size, config.first_scene + config.steps * config.batch_size)
    return iter(
        DataLoader(
            task.dataset("train", config),
            batch_size=config.batch_size,
            sampler=scenes,
            collate_fn=task.collate,
            num_workers=config.workers,
            worker_init_fn=_quiet_worker,
        )
    )


def _quiet_worker(_: int) -> None:
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):  # may reach the whole process group; the parent decides when to stop
        signal.signal(number, signal.SIG_IGN)


def _to_device(batch: Batch, device: torch.device, module: nn.Module) -> Batch:
    dtype = next(module.parameters()).dtype
    moved = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    return moved | {"pixel_values": moved["pixel_values"].to(dtype)}


def _save(path: Path, module: nn.Module, optimizer: MasterOptimizer, step: int) -> None:
    """Writes beside, then replaces: a crash leaves the old checkpoint or the new one."""
    path.parent.mkdir(exist_ok=True)
    fresh = path.with_suffix(".new")
    torch.save({"step": step, "module": module.state_dict(), **optimizer.state_dict()}, fresh)
    fresh.replace(path)


def _resume(path: Path, module: nn.Module, optimizer: MasterOptimizer) -> int:
    """Loads the newest checkpoint, if there is one; returns the step it was written at."""
    if not path.exists():
        return 0
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state)
    return int(state["step"])
