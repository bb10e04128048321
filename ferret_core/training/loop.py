"""The training loop: one process or many, one GPU or none, with Ray or without; it goes on where it was stopped.

    train(TrainConfig.load("configs/playground.yaml", ["steps=2000"]))

What is learned in a step depends on the step alone, so a run that was stopped, or lost workers, goes on as if it had not. A
run's directory holds

    config.yaml         the settings
    metrics.jsonl       one line every `log_steps`, and one for each evaluation; `tensorboard/` has the same
    curves.png          losses and accuracies, drawn with each checkpoint
    checkpoints/        weights, optimiser states and step: what the run goes on from
    model/              the final model: for `ferret up --model` and `FerretPredictor.from_pretrained`
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence, Sized
from contextlib import closing
from itertools import compress
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch.utils.data import Dataset

from ferret_core.training.batches import MicroBatchSampler, accumulation_steps, load, share, total_steps
from ferret_core.training.checkpoints import Checkpoints
from ferret_core.training.config import TrainConfig
from ferret_core.training.export import export
from ferret_core.training.reporting import (
    Progress,
    Reporter,
    Totals,
    call_all,
    draw_curves,
    model_flops,
    open_reporters,
    peak_flops,
)
from ferret_core.training.schedule import learning_rate_factor
from ferret_core.training.start import build_task
from ferret_core.training.stop import Stopped
from ferret_core.training.storage import Storage
from ferret_core.training.strategies import MicroBatch, Strategy, build_strategy
from ferret_core.training.tasks import Batch
from ferret_core.training.workers import Workers

log = logging.getLogger(__name__)


def train(config: TrainConfig, stop: Callable[[], bool] = lambda: False, reporters: Sequence[Reporter] = ()) -> str:
    """Runs, or resumes, a training run in this process, which may be one of several.

    Args:
        config: the settings; the same for all processes.
        stop: asked after every step whether to save and stop; it is enough if one process is told to.
        reporters: take the first process's numbers, beside those that every run has.

    Returns:
        Where the final model is.

    Raises:
        Stopped: `stop` said so; the same call goes on from there.
    """
    with Workers.join(config) as workers, tempfile.TemporaryDirectory(prefix="ferret-train-") as scratch:
        return Run(config, workers, Path(scratch), stop, reporters).train()


class Run:
    """A run in one of its processes."""

    def __init__(
        self, config: TrainConfig, workers: Workers, scratch: Path, stop: Callable[[], bool], reporters: Sequence[Reporter]
    ) -> None:
        self.config, self.workers, self.stop = config, workers, stop
        self.storage = Storage.at(config.output, scratch / "run")
        self.directory = self.storage.directory
        self.directory.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config.seed)
        self.task = build_task(config)
        self.dataset, self.held_out = cast(Dataset, self.task.dataset("train")), self.task.dataset("validation")
        self.steps = total_steps(config, self.dataset)
        self.strategy: Strategy = build_strategy(self.task, config, workers)
        self.checkpoints = Checkpoints(self.storage, scratch, config.checkpoint, workers)
        self.totals = Totals(workers)
        self.best = math.inf
        self.first_step = self._resume()
        self.progress: Progress | None = None
        self.reporters: list[Reporter] = []
        if workers.first:
            self.storage.get("metrics.jsonl")  # of a bucket, too: the file goes on
            self.progress = Progress(self.steps, self.first_step)
            self.reporters = [*open_reporters(self.directory, self.first_step), self.progress, *reporters]
            (self.directory / "config.yaml").write_text(config.to_yaml())

    def train(self) -> str:
        """All steps that are left, and the export of the model."""
        try:
            with closing(self._batches()) as batches:
                self._train(batches)
            return self._finish()
        finally:
            self.checkpoints.wait()  # whatever happened, what is being saved is worth having

    def _train(self, batches: Iterator[Batch]) -> None:
        config = self.config
        self._restart_clock()
        self._saved_at = time.monotonic()
        for step in range(self.first_step + 1, self.steps + 1):
            stopped, due = self._step(step, batches)
            if step % config.log_steps == 0 or step == self.steps:
                self._report(step)
            validation_loss = None
            if step % config.eval_steps == 0 or step == self.steps:
                validation_loss = self._evaluate(step)
                self._restart_clock()
            before = self.best
            self.best = min(before, math.inf if validation_loss is None else validation_loss)
            due = due or step == self.steps or (config.checkpoint.steps > 0 and step % config.checkpoint.steps == 0)
            if stopped or due or (self.best < before and config.checkpoint.keep_best > 0):
                self._save(step, validation_loss)
            if stopped and step < self.steps:
                self._stop(step)

    def _step(self, step: int, batches: Iterator[Batch]) -> tuple[bool, bool]:
        """One update; whether anybody was asked to stop, and whether it is time for a checkpoint. Collective."""
        config, workers, task = self.config, self.workers, self.task
        task.train()
        mine = [next(batches) for _ in range(accumulation_steps(config.micro_batches, workers.world))]
        real = [counts for _, counts in share(range(config.micro_batches), workers.rank, workers.world)]
        counts = [task.counts(batch) for batch in compress(mine, real)]
        due = workers.first and time.monotonic() - self._saved_at > 60 * config.checkpoint.minutes
        local = [sum(count[name] for count in counts) for name in task.weights]
        *total, stopped, due = workers.sum(torch.tensor([*local, self.stop(), due], dtype=torch.double)).tolist()
        scales = {name: weight / max(1.0, count) for (name, weight), count in zip(task.weights.items(), total, strict=True)}
        nothing = dict.fromkeys(scales, 0.0)
        factor = learning_rate_factor(config.schedule, step - 1, self.steps)
        means, norm = self.strategy.step(
            [
                MicroBatch(
                    _to_device(batch, workers.device),
                    scales if counts_for_something else nothing,
                    seed=hash((config.seed, step, turn * workers.world + workers.rank)),
                )
                for turn, (batch, counts_for_something) in enumerate(zip(mine, real, strict=True))
            ],
            factor,
        )
        for batch, count, mean in zip(compress(mine, real), counts, compress(means, real), strict=True):
            self.totals.add(mean)
            self._images += len(batch["pixel_values"])
            self._tokens += batch["input_ids"].numel() if "input_ids" in batch else 0
            self._answers += count.get("answers", 0)
        if workers.first:
            once = torch.ones(())
            rate = torch.tensor(factor * config.optimizer.learning_rate, dtype=torch.double)
            self.totals.add({"gradient_norm": (torch.tensor(norm), once), "learning_rate": (rate, once)})
        if self.progress:
            self.progress.advance()
        return stopped > 0, due > 0

    def _report(self, step: int) -> None:
        seconds = time.monotonic() - self._since
        work = torch.tensor([self._images, self._tokens, self._answers, self.checkpoints.failures])
        images, tokens, answers, failures = self.workers.sum(work).tolist()
        values = self._means(self.totals) | {
            "tokens_per_second": round(tokens / seconds, 1),
            "images_per_second": round(images / seconds, 2),
        }
        peak = peak_flops(self.workers.device)
        if peak:
            flops = model_flops(self.task.model, int(images), int(tokens), int(answers))
            values["mfu"] = round(flops / seconds / peak / self.workers.world, 4)
        if failures:
            values["checkpoint_failed"] = failures  # from then on, so that nobody misses it
        call_all(self.reporters, step, values)
        self._restart_clock()

    def _means(self, totals: Totals) -> dict[str, float]:
        """The means of `totals`, and the loss that they add up to, which stands for a task's only one. Collective."""
        means = totals.pop()
        weights = {f"{name}_loss": weight for name, weight in self.task.weights.items()}
        loss = sum(weight * means.get(name, 0.0) for name, weight in weights.items())
        return {"loss": round(loss, 6)} | {name: value for name, value in means.items() if weights.keys() != {name}}

    @torch.no_grad()
    def _evaluate(self, step: int) -> float | None:
        """Means over the first `eval_samples` of the held-out data; their loss. None if there are no such data. Collective."""
        if self.held_out is None:
            return None
        samples = range(self.config.eval_samples)
        if isinstance(self.held_out, Sized):
            samples = samples[: len(self.held_out)]
        size = self.config.micro_batch_size
        mine = share([samples[start : start + size] for start in samples[::size]], self.workers.rank, self.workers.world)
        self.task.eval()
        totals = Totals(self.workers)
        batches = load(self.held_out, [list(each) for each, _ in mine], self.task.collate)
        for batch, (_, counts) in zip(batches, mine, strict=True):
            means = self.strategy.evaluate(_to_device(batch, self.workers.device))
            if counts:
                totals.add(means)
        values = {f"validation_{name}": value for name, value in self._means(totals).items()}
        call_all(self.reporters, step, values)
        return values["validation_loss"]

    def _batches(self) -> Generator[Batch]:
        config, workers = self.config, self.workers
        text_length = getattr(self.dataset, "text_length", lambda _: 0)  # the playground's are all about as long
        sampler = MicroBatchSampler(config, self.steps, self.first_step, workers.rank, workers.world, text_length)
        return load(self.dataset, sampler, self.task.collate, config.data.workers, workers.device.type == "cuda")

    def _resume(self) -> int:
        """The step of the newest checkpoint, whose state is taken over; 0 if there is none."""
        step = self.checkpoints.latest()
        if step is None:
            return 0
        facts = self.checkpoints.load_facts(step)
        states = self.checkpoints.load(step, facts)
        if set(states) != set(self.strategy.trained) or facts["settings"] != self._settings():
            raise ValueError(
                f"{self.config.output}: another run is there: choose another output, or its settings, {facts['settings']}"
            )
        self.strategy.load_state(states, step)
        self.best = facts["best"]
        self.totals.restore(facts["totals"])
        log.info("goes on from step %d of %s", step, self.config.output)
        return step

    def _settings(self) -> dict[str, Any]:
        """The settings that a run cannot change on its way."""
        values = self.config.to_values()
        return {
            name: values[name] for name in ("task", "train", "lora", "batch_size", "micro_batch_size", "precision", "seed")
        } | {"optimizer": values["optimizer"]["name"]}

    def _save(self, step: int, validation_loss: float | None) -> None:
        facts = {
            "validation_loss": validation_loss,
            "best": self.best,
            "totals": self.totals.gather(),
            "settings": self._settings(),
        }
        self.checkpoints.save(self.strategy, step, facts, self._save_curves if self.workers.first else None)
        self._saved_at = time.monotonic()

    def _save_curves(self) -> None:
        draw_curves(self.directory)
        self.storage.send("config.yaml", "metrics.jsonl", "curves.png")

    def _stop(self, step: int) -> NoReturn:
        """Ends with `Stopped`, or `OSError` if the checkpoint of this step could not be saved. Collective."""
        self.checkpoints.wait()
        self._send_all()
        if self._any(self.checkpoints.failure is not None):
            raise OSError(f"{self.config.output}: step {step} could not be saved; the same command goes on from an earlier one")
        raise Stopped(f"stopped at step {step}; the same command goes on from there")

    def _finish(self) -> str:
        """Exports the model; where it is. Raises `OSError` if it could not be saved there. Collective."""
        export(self.strategy, self.config, self.directory / "model")
        if self.config.optimizer.ema:
            export(self.strategy, self.config, self.directory / "model-ema", average=True)
        self.checkpoints.wait()
        if self._any(not self._send_all()):
            raise OSError(f"{self.config.output}: the model could not be saved; the same command tries again")
        if self._any(self.checkpoints.failure is not None):
            log.error("%s: the model is saved, the last checkpoint is not", self.config.output)
        return f"{self.config.output.rstrip('/')}/model"

    def _any(self, mine: bool) -> bool:
        """Whether any worker says so. Collective."""
        return bool(self.workers.sum(torch.tensor([float(mine)])))

    def _send_all(self) -> bool:
        """Whether all that the first worker has written is stored."""
        return not self.workers.first or self.storage.send("metrics.jsonl", "curves.png", "*/*")

    def _restart_clock(self) -> None:
        self._since = time.monotonic()
        self._images = self._tokens = self._answers = 0


def _to_device(batch: Batch, device: torch.device) -> Batch:
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value for key, value in batch.items()
    }
