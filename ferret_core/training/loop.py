"""The training loop: one process, one device, resumable.

    train(TrainConfig.load("configs/playground.yaml", ["steps=2000"]))

The batch of a step depends on the step alone, so a run that was stopped goes on as if it had not been.
A run's directory holds

    metrics.jsonl       one line every `log_steps`, and one for each evaluation
    checkpoint/         the newest state: model, optimiser, step; replaced atomically
    model/              the final model, in the run's precision, and its processor: for `FerretPredictor.from_pretrained`
"""

from __future__ import annotations

import json
import shutil
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

from ferret_core.model import FerretConfig, FerretForConditionalGeneration, FerretProcessor
from ferret_core.training.config import TrainConfig
from ferret_core.training.initialize import initialize_numbers
from ferret_core.training.optimizer import MasterOptimizer
from ferret_core.training.tasks import TASKS, Batch, Task


def train(config: TrainConfig) -> Path:
    """Runs, or resumes, a training run. Returns the directory of the final model."""
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device)
    torch.manual_seed(config.seed)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)

    model, processor = load_model(config)
    task: Task = TASKS[config.task](model, processor)
    task.module.to(device)
    if config.precision == "bf16":
        for parameter in task.module.parameters():  # not the buffers: rotary frequencies must stay exact
            parameter.data = parameter.data.bfloat16()
    if device.type == "cpu":
        task.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = MasterOptimizer(task.module, config)
    step = _resume(output / "checkpoint", task.module, optimizer)

    stop = StopSignal()
    saved_at = time.monotonic()
    with (output / "metrics.jsonl").open("a", buffering=1) as log, tqdm(total=config.steps, initial=step, unit="step") as bar:
        started, since = time.monotonic(), step
        sums: dict[str, float] = {}
        for batch in _batches(task, config, step):
            task.module.train()
            loss, metrics = task.loss(_to_device(batch, device, task.module))
            loss.backward()
            norm = optimizer.step(config.learning_rate_factor(step))
            step += 1
            for name, value in {"loss": loss.item(), "gradient_norm": norm, **metrics}.items():
                sums[name] = sums.get(name, 0.0) + value
            bar.update()
            if step % config.log_steps == 0:
                seconds, now = time.monotonic() - started, time.monotonic()
                line = {name: round(value / (step - since), 4) for name, value in sums.items()}
                line |= {"step": step, "images_per_second": round((step - since) * config.batch_size / seconds, 2)}
                log.write(json.dumps(line) + "\n")
                bar.set_postfix({k: line[k] for k in ("loss", *metrics)})
                started, since, sums = now, step, {}
            if step % config.eval_steps == 0 or step == config.steps:
                scores = evaluate(task, config, device)
                log.write(json.dumps({"step": step, **{f"validation_{k}": round(v, 4) for k, v in scores.items()}}) + "\n")
            if stop.received or step == config.steps or time.monotonic() - saved_at > 60 * config.save_minutes:
                _save(output / "checkpoint", task.module, optimizer, step)
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
    ferret.region_token_id = tokenizer.convert_tokens_to_ids("<region_fea>")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(ferret.text_config, name, getattr(tokenizer, name))
    model = FerretForConditionalGeneration(ferret)
    initialize_numbers(model, tokenizer)
    return model, FerretProcessor.for_config(ferret, tokenizer)


class StopSignal:
    """Notes SIGTERM and SIGINT, so that the loop can save before it ends."""

    def __init__(self) -> None:
        self.received = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, *_: object) -> None:
        self.received = True


@torch.no_grad()
def evaluate(task: Task, config: TrainConfig, device: torch.device) -> dict[str, float]:
    """Mean loss and metrics over the first `eval_examples` validation samples."""
    task.module.eval()
    dataset = task.dataset("validation", config, config.eval_examples)
    totals: dict[str, float] = {}
    for batch in DataLoader(dataset, batch_size=config.batch_size, collate_fn=task.collate):
        loss, metrics = task.loss(_to_device(batch, device, task.module))
        for name, value in {"loss": loss.item(), **metrics}.items():
            totals[name] = totals.get(name, 0.0) + value * len(batch["pixel_values"])
    return {name: total / config.eval_examples for name, total in totals.items()}


def _batches(task: Task, config: TrainConfig, step: int) -> Iterator[Batch]:
    """The batches of steps `step`, `step + 1`, ... up to the end of the run."""
    indices = [list(range(i * config.batch_size, (i + 1) * config.batch_size)) for i in range(step, config.steps)]
    return iter(
        DataLoader(
            task.dataset("train", config),
            batch_sampler=indices,
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


def _save(directory: Path, module: nn.Module, optimizer: MasterOptimizer, step: int) -> None:
    """Writes beside, then swaps: a crash leaves the old checkpoint or the new one."""
    fresh = directory.with_name(directory.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    torch.save({"step": step, "module": module.state_dict(), **optimizer.state_dict()}, fresh / "state.pt")
    old = directory.with_name(directory.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    fresh.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def _resume(directory: Path, module: nn.Module, optimizer: MasterOptimizer) -> int:
    """Loads the newest checkpoint, if there is one; returns the step it was written at."""
    for candidate in (directory, directory.with_name(directory.name + ".old")):
        if (candidate / "state.pt").exists():
            state: dict[str, Any] = torch.load(candidate / "state.pt", map_location="cpu", weights_only=True)
            module.load_state_dict(state["module"])
            optimizer.load_state_dict(state)
            return int(state["step"])
    return 0
