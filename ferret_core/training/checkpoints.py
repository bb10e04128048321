"""Checkpoints of a run: saved beside the training, complete or not there, the same for every strategy.

    checkpoints/step-00001000/worker-0-of-2.safetensors   states of every other parameter: "NAME|master", "NAME|exp_avg", ...
    checkpoints/step-00001000/worker-1-of-2.safetensors   ... and of the others
    checkpoints/step-00001000/state.json                  step, number of workers, and facts such as the validation loss

A checkpoint counts once all of these files are there; workers need not wait for each other, or for the storage. A save that
fails is reported and forgotten: training goes on, and the checkpoints before it stay.
"""

from __future__ import annotations

import json
import logging
import math
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ferret_core.training.config import CheckpointConfig
from ferret_core.training.storage import Storage
from ferret_core.training.strategies import Strategy
from ferret_core.training.workers import Workers

log = logging.getLogger(__name__)

_ROOT = "checkpoints/"
_DIRECTORY = re.compile(r"checkpoints/step-(\d+)/(.+)")


class Checkpoints:
    """Saves and finds the checkpoints of a run, of one worker."""

    def __init__(self, storage: Storage, scratch: Path, config: CheckpointConfig, workers: Workers) -> None:
        self.storage, self.scratch, self.config, self.workers = storage, scratch, config, workers
        self.failure: str | None = None
        """What went wrong with the last save; None if nothing did."""
        self.failures = 0
        """How many saves went wrong."""
        self._thread: threading.Thread | None = None

    def save(
        self,
        strategy: Strategy,
        step: int,
        facts: dict[str, Any],
        before: Callable[[], None] | None = None,
    ) -> None:
        """Copies the state and writes it while training goes on. Collective.

        Args:
            strategy: whose state.
            step: how many steps it has learned.
            facts: what else there is to know: JSON values, which `load_facts` gives back. A `validation_loss` among them may
                make it one of the best.
            before: called in the same thread before the checkpoint counts, for what should be as new as it is.
        """
        self.wait()
        tensors: dict[str, Tensor] = {}
        for i, name in enumerate(strategy.trained):
            values = strategy.state(name)
            if i % self.workers.world == self.workers.rank:
                tensors |= {f"{name}|{key}": _copy(value) for key, value in values.items()}
        state = {**facts, "step": step, "workers": self.workers.world}
        self._thread = threading.Thread(target=self._write, args=(tensors, state, before), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Until the last save is over."""
        if self._thread:
            self._thread.join()
            self._thread = None

    def latest(self) -> int | None:
        """The step of the newest complete checkpoint, agreed upon by all workers. Collective."""
        steps = sorted(self._complete()) if self.workers.first else []
        return self.workers.agree(steps[-1] if steps else None)

    def load(self, step: int, facts: dict[str, Any] | None = None) -> dict[str, dict[str, Tensor]]:
        """The states of a checkpoint by parameter; large ones are mapped from disk, not read. Raises `FileNotFoundError`.

        `facts` are its `load_facts`, if the caller has them.
        """
        states: dict[str, dict[str, Tensor]] = {}
        workers = (facts or self.load_facts(step))["workers"]
        for name in (_name(step, f"worker-{i}-of-{workers}.safetensors") for i in range(workers)):
            for key, tensor in _tensors(self._get(name)):
                parameter, _, part = key.rpartition("|")
                states.setdefault(parameter, {})[part] = tensor
        return states

    def load_facts(self, step: int) -> dict[str, Any]:
        """What was saved beside the states. Raises `FileNotFoundError`."""
        return json.loads(self._get(_name(step, "state.json")).read_text())

    def _get(self, name: str) -> Path:
        path = self.storage.get(name)
        if path is None:
            raise FileNotFoundError(f"{name}: vanished while it was read")
        return path

    def _write(self, tensors: dict[str, Tensor], state: dict, before: Callable[[], None] | None) -> None:
        step, rank = state["step"], self.workers.rank
        partial = self.scratch / f"worker-{rank}.safetensors"
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, partial)
            self.storage.put(partial, _name(step, f"worker-{rank}-of-{self.workers.world}.safetensors"))
            if before:
                before()
            if self.workers.first:
                partial.with_suffix(".json").write_text(json.dumps(state))
                self.storage.put(partial.with_suffix(".json"), _name(step, "state.json"))
            self.failure = None
        except Exception as error:  # of whatever kind: the training must go on
            self.failure = f"{type(error).__name__}: {error}"
            self.failures += 1
            log.error("checkpoint of step %d was NOT saved: %s; training goes on, earlier checkpoints stay", step, self.failure)
        finally:
            partial.unlink(missing_ok=True)
        if self.workers.first and not self.failure:
            try:
                self._prune()
            except OSError as error:
                log.error("old checkpoints were not removed: %s", error)

    def _complete(self) -> dict[int, dict]:
        """The state of each complete checkpoint by its step."""
        files: dict[int, set[str]] = {}
        for name in self.storage.names(_ROOT):
            if match := _DIRECTORY.match(name):
                files.setdefault(int(match[1]), set()).add(match[2])
        complete = {}
        for step, names in files.items():
            path = self.storage.get(_name(step, "state.json"))
            if path is None:
                continue
            state = json.loads(path.read_text())
            if all(f"worker-{i}-of-{state['workers']}.safetensors" in names for i in range(state["workers"])):
                complete[step] = state
        return complete

    def _prune(self) -> None:
        """Removes what is neither among the newest nor among the best, and what never became complete."""
        complete = self._complete()
        newest = sorted(complete)[-self.config.keep_last :]
        losses = {step: state.get("validation_loss") for step, state in complete.items()}
        measured = {step: loss for step, loss in losses.items() if loss is not None and math.isfinite(loss)}
        best = sorted(measured, key=measured.__getitem__)[: self.config.keep_best]
        known = {int(match[1]) for name in self.storage.names(_ROOT) if (match := _DIRECTORY.match(name))}
        if newest:
            for step in known - {*newest, *best}:
                if step < newest[-1]:  # a newer one may be on its way
                    self.storage.remove(_name(step, ""))


def _name(step: int, file: str) -> str:
    return f"{_ROOT}step-{step:08d}/{file}"


def _copy(value: Tensor) -> Tensor:
    """On the CPU, contiguous, and not the optimiser's own."""
    return torch.empty(value.shape, dtype=value.dtype).copy_(value)


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118 (it is no dictionary)
            yield key, file.get_tensor(key)
