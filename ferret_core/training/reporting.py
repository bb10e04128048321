"""What a run tells about itself: a line of numbers, a progress bar, TensorBoard, curves."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from ferret_core.disk import written_whole
from ferret_core.training.tasks import Means
from ferret_core.training.workers import Workers

log = logging.getLogger(__name__)

_HELD_OUT = "validation_"
_PEAK_TFLOPS = {"A100": 312, "H100 PCIe": 756, "H100": 989, "H200": 989, "L40S": 362}
"""Dense bfloat16 teraflop/s of GPUs by a part of their name, the longer ones first (NVIDIA's data sheets)."""


class Reporter(Protocol):
    """Takes the numbers of a run as they come."""

    def __call__(self, step: int, values: dict[str, float]) -> None:
        """Numbers by name, after `step` steps."""
        ...


class MetricsFile:
    """`metrics.jsonl`: a line for each report. What a resumed run will report again is cut off."""

    def __init__(self, path: Path, step: int) -> None:
        kept = [line for line in read_metrics(path) if line["step"] <= step]
        with written_whole(path) as file:
            file.writelines(json.dumps(line).encode() + b"\n" for line in kept)
        self._file = path.open("a", buffering=1)

    def __call__(self, step: int, values: dict[str, float]) -> None:
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:  # a full disk
            log.error("metrics.jsonl: %s", error)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a `metrics.jsonl`; none if there is no such file. A last line that was cut short is left out."""
    lines = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


class TensorBoard:
    """Event files in `tensorboard/`."""

    def __init__(self, directory: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(directory), purge_step=step + 1)

    def __call__(self, step: int, values: dict[str, float]) -> None:
        try:
            for name, value in values.items() if self._writer else ():
                self._writer.add_scalar(name, value, step)
            if self._writer:
                self._writer.flush()
        except OSError as error:  # a full disk; its own thread has ended with it
            log.error("tensorboard: no more event files: %s", error)
            self._writer = None


class Progress:
    """A bar where there is a terminal; elsewhere, as in the log of a job, a line for each report. Both tell when it ends."""

    def __init__(self, steps: int, step: int) -> None:
        self.steps, self.first, self.started = steps, step, time.monotonic()
        self._bar = tqdm(total=steps, initial=step, unit="step") if sys.stderr.isatty() else None

    def advance(self) -> None:
        """One more step is done."""
        if self._bar:
            self._bar.update()

    def __call__(self, step: int, values: dict[str, float]) -> None:
        shown = {name: f"{value:.4g}" for name, value in values.items()}
        if self._bar:
            self._bar.set_postfix(shown)
            return
        remaining = (self.steps - step) * (time.monotonic() - self.started) / max(1, step - self.first)
        filled = round(20 * step / self.steps)
        bar = "█" * filled + "░" * (20 - filled)
        numbers = "  ".join(f"{name} {value}" for name, value in shown.items())
        print(f"{bar} {step}/{self.steps}  {numbers}  ETA {tqdm.format_interval(remaining)}", file=sys.stderr, flush=True)


def open_reporters(directory: Path, step: int) -> list[Reporter]:
    """A metrics file, and TensorBoard if it is installed."""
    reporters: list[Reporter] = [MetricsFile(directory / "metrics.jsonl", step)]
    try:
        reporters.append(TensorBoard(directory / "tensorboard", step))
    except ModuleNotFoundError:
        log.warning("no event files: pip install tensorboard")
    return reporters


def draw_curves(directory: Path) -> None:
    """`curves.png`: losses and accuracies over the steps, of `metrics.jsonl`. Nothing without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        log.warning("no curves.png: pip install matplotlib")
        return
    lines = read_metrics(directory / "metrics.jsonl")
    names = sorted({name.removeprefix(_HELD_OUT) for line in lines for name in line} - {"step"})
    panels = {
        "loss": [name for name in names if name.endswith("loss")],
        "accuracy": [name for name in names if name.endswith(("accuracy", "words", "share"))],
        "speed": [name for name in names if name == "tokens_per_second"],
    }
    figure = Figure(figsize=(13, 4), layout="constrained")
    for axes, (title, shown) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for i, name in enumerate(shown):
            for key, style in (
                (name, {"linewidth": 1, "label": name}),
                (_HELD_OUT + name, {"marker": "o", "linestyle": "none"}),
            ):
                points = [(line["step"], line[key]) for line in lines if key in line]
                if points:
                    axes.plot(*zip(*points, strict=True), color=f"C{i}", **style)
        axes.set(title=title, xlabel="step", yscale="log" if title == "loss" else "linear")
        axes.grid(alpha=0.3)
        if shown:
            axes.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3)
    figure.suptitle("lines: training; dots: held-out data", fontsize="small")
    try:
        figure.savefig(directory / "curves.png", dpi=110)
    except OSError as error:
        log.error("curves.png: %s", error)


class Totals:
    """Sums and counts over micro-batches, and over workers when they are read."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self.sums: dict[str, Tensor] = {}

    def add(self, means: Means) -> None:
        """Takes the means of one more micro-batch."""
        for name, (value, count) in means.items():
            pair = torch.stack((value.double(), count.to(value.device).double()))
            self.sums[name] = self.sums[name] + pair if name in self.sums else pair

    def gather(self) -> dict[str, list[float]]:
        """Everything so far, of all workers: sum and count by name. The first worker, who always has some, says of what.
        Collective."""
        names = self.workers.agree(sorted(self.sums))
        if not names:
            return {}
        zeros = torch.zeros(2, dtype=torch.double)
        totals = self.workers.sum(torch.stack([self.sums.get(name, zeros).cpu() for name in names]))
        return dict(zip(names, totals.tolist(), strict=True))

    def restore(self, totals: dict[str, list[float]]) -> None:
        """Goes on from what was gathered: the first worker, for all."""
        if self.workers.first:
            self.sums = {
                name: torch.tensor(pair, dtype=torch.double, device=self.workers.device) for name, pair in totals.items()
            }

    def pop(self) -> dict[str, float]:
        """The means of everything so far, of all workers; starts anew. Collective."""
        means = {name: float(f"{value / count:.7g}") for name, (value, count) in self.gather().items() if count}
        self.sums = {}
        return means


def model_flops(model: Any, images: int, tokens: int, answers: int) -> float:
    """Floating-point operations of one forward and backward pass (Kaplan et al., 2020): two for each weight and token forward,
    as many for the gradient that flows back, and as many for the gradient of each trained weight.

    Args:
        model: a Ferret.
        images: images that pass the vision tower.
        tokens: tokens that pass the decoder.
        answers: tokens of answers, which alone pass the head.
    """
    tower, decoder = model.model.vision_tower, model.model.language_model.layers
    total = 0.0
    for module, count in ((tower, images * model.config.num_patches), (decoder, tokens), (model.lm_head, answers)):
        size = sum(parameter_size(p) for p in module.parameters())
        trained = sum(parameter_size(p) for p in module.parameters() if p.requires_grad)
        flows_back = trained > 0 or module is not tower  # something before the decoder is always trained
        total += count * ((4 if flows_back else 2) * size + 2 * trained)
    return total


def parameter_size(parameter: Any) -> int:
    """Elements of a parameter, of which DeepSpeed may have left an empty shell."""
    return getattr(parameter, "ds_numel", parameter.numel())


def peak_flops(device: torch.device) -> float | None:
    """What a device could do at best, per second; None if that is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((1e12 * tflops for part, tflops in _PEAK_TFLOPS.items() if part in name), None)


def call_all(reporters: Sequence[Reporter], step: int, values: dict[str, float]) -> None:
    """Gives every reporter the same numbers."""
    for reporter in reporters:
        reporter(step, values)
