"""Training: steps as `ferret train` makes them against a plain loop over padded batches, on the same samples, taking turns.

python benchmarks/training.py                                       # the bundled checkpoint, on two cores: four minutes
python benchmarks/training.py --device cuda --shape 7b --layers 4   # layers as wide as FERRET-7B's, with random weights

The plain loop is what one would write first: batches in the order of the data, padded on the right with an attention mask;
float32 weights under autocast; all logits at once; torch's AdamW. Tokens are counted without padding. Memory is what a step
takes beside weights, gradients' sums and moments. With the bundled checkpoint also: what the loader's process hides, and how
long a checkpoint holds up the loop.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import compare, hardware, write_result
from torch import Tensor
from transformers import AutoTokenizer

from ferret_core.checkpoint.bundled import checkpoint_path
from ferret_core.data.config import DataConfig, SourceConfig
from ferret_core.data.files import write_records
from ferret_core.data.playground import playground_example
from ferret_core.data.samples import Sample, pad
from ferret_core.model.modeling import IGNORE_INDEX
from ferret_core.training.activations import LiveMemory
from ferret_core.training.batches import MicroBatchSampler, deal, load
from ferret_core.training.checkpoints import Checkpoints
from ferret_core.training.config import OptimizerConfig, TrainConfig
from ferret_core.training.reporting import model_flops, peak_flops
from ferret_core.training.start import build_task, load_model
from ferret_core.training.storage import Storage
from ferret_core.training.strategies import LocalStrategy, MicroBatch
from ferret_core.training.tasks import Batch, InstructTask, Means, Task, mean_of
from ferret_core.training.workers import Workers

CONFIGS = Path(__file__).parent.parent / "ferret_core" / "training" / "configs"
SHAPES = Path(__file__).parent.parent / "ferret_core" / "model" / "configs"
MOST_TURNS = 12
STEPS_LOOKED_AT = 7
STEPS = 6  # of the loop that waits for its data


# ---- what is trained -------------------------------------------------------------------------------------------------


def write_conversations(directory: Path, count: int) -> SourceConfig:
    """Playground scenes as records, with 1 to 12 questions each."""

    def draw() -> Any:
        for index in range(count):
            example = playground_example("train", index, 1 + index * 7 % MOST_TURNS)
            path = directory / example.record.image
            path.parent.mkdir(parents=True, exist_ok=True)
            example.image.save(path)
            yield example.record

    write_records(directory / "records.jsonl", draw())
    return SourceConfig(path=str(directory / "records.jsonl"))


def write_shape(directory: Path, shape: str, layers: int) -> dict[str, Any]:
    """`init` and `tokenizer` of random weights in the shape of FERRET-7B, but for the number of layers.

    The tokenizer is the playground's, with as many more tokens as LLaMA's has.
    """
    values = json.loads((SHAPES / f"{shape}.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path("playground"))
    tokenizer.add_tokens([f"<unused_{i}>" for i in range(values["text_config"]["vocab_size"] - len(tokenizer))])
    tokenizer.save_pretrained(directory / "tokenizer")
    values["text_config"]["num_hidden_layers"] = layers
    (directory / "config.json").write_text(json.dumps(values))
    return {"init": str(directory / "config.json"), "tokenizer": str(directory / "tokenizer")}


def typical_step(task: Task) -> tuple[range, list[Sample]]:
    """Of the run's first steps that with the median of padding: its samples' places in the run, and the samples."""
    size, (dataset, _) = task.config.batch_size, training_data(task)
    places = [range(start, start + size) for start in range(0, STEPS_LOOKED_AT * size, size)]
    steps = [(step, [dataset[index] for index in step]) for step in places]
    return sorted(steps, key=lambda step: padding(step[1], task.config.micro_batch_size))[STEPS_LOOKED_AT // 2]


def training_data(task: Task) -> tuple[Any, Callable[[int], int]]:
    """What it trains on, and how long its texts are: the playground's are all about as long."""
    dataset = task.dataset("train")
    return dataset, getattr(dataset, "text_length", lambda _: 0)


def padding(samples: Sequence[Sample], size: int) -> float:
    """Share of positions that are padding where `size` samples at a time are padded to the longest of them."""
    lengths = [len(sample.input_ids) for sample in samples]
    return 1 - sum(lengths) / sum(size * max(lengths[i : i + size]) for i in range(0, len(lengths), size))


# ---- two ways to train -----------------------------------------------------------------------------------------------


class PaddedLoop:
    """The plain one."""

    def __init__(self, config: TrainConfig, samples: Sequence[Sample], device: torch.device) -> None:
        self.model = load_model(replace(config, precision="fp32"))[0].to(device).train()
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")
        frozen = [] if "vision_tower" in config.train else self.model.model.vision_tower.parameters()
        for parameter in frozen:
            parameter.requires_grad_(False)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=config.optimizer.learning_rate, weight_decay=0.0)
        size = config.micro_batch_size
        self.batches = [to_device(pad(samples[i : i + size]), device) for i in range(0, len(samples), size)]

    def step(self) -> float:
        """One update; the loss before it."""
        answers = sum(int((batch["labels"] != IGNORE_INDEX).sum()) for batch in self.batches)
        total = 0.0
        for batch in self.batches:
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values", "region_points")}
            with self.autocast:
                logits = self.model(**inputs, use_cache=False).logits[:, :-1].float()
            loss = F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum") / answers
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        return total


class PackedLoop:
    """Ours: what `ferret_core.training.loop` does in a step, without data and reports."""

    def __init__(self, task: Task, places: range, samples: Sequence[Sample], workers: Workers) -> None:
        config = task.config
        self.strategy = LocalStrategy(task.train(), config, workers)
        dealt = deal(places, config.micro_batch_size, training_data(task)[1])
        batches = [task.collate([samples[index - places.start] for index in micro_batch]) for micro_batch in dealt]
        counts = [task.counts(batch) for batch in batches]
        self.scales = {name: weight / max(1, sum(count[name] for count in counts)) for name, weight in task.weights.items()}
        self.batches = [to_device(batch, workers.device) for batch in batches]

    def step(self) -> float:
        """One update; the answers' loss before it."""
        means, _ = self.strategy.step([MicroBatch(batch, self.scales, seed=0) for batch in self.batches], 1.0)
        losses = [mean["answers_loss"] for mean in means]
        return float(sum(value for value, _ in losses)) / int(sum(count for _, count in losses))

    def variant(self, checkpointing: bool, chunked: bool) -> Callable[[], float]:
        """The same step, with decoder layers recomputed or not, with all logits at once or not."""
        task = self.strategy.task
        other = task if chunked else AllLogits(task.model, task.processor, task.config).train()
        decoder = task.model.model.language_model

        def step() -> float:
            decoder.gradient_checkpointing_disable()
            if checkpointing:
                decoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self.strategy.task = other
            return self.step()

        return step


class AllLogits(InstructTask):
    """The loss as one would write it first."""

    def answers(self, hidden: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], Means, tuple[Tensor, Tensor]]:
        """As `InstructTask`."""
        logits, targets = self.model.lm_head(hidden[:, :-1]).float().flatten(0, 1), labels[:, 1:].flatten()
        predictions = logits.argmax(-1)
        right = (predictions == targets)[targets != IGNORE_INDEX]
        return (
            {"answers": F.cross_entropy(logits, targets, reduction="sum")},
            {"accuracy": mean_of(right)},
            (targets, predictions),
        )


def to_device(batch: Batch, device: torch.device) -> Batch:
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


# ---- measured --------------------------------------------------------------------------------------------------------


def compare_loops(config: TrainConfig, workers: Workers, rounds: int, variants: bool = False) -> dict[str, Any]:
    """Seconds, tokens/s, memory of a step, and how the loops agree."""
    torch.manual_seed(config.seed)
    task = build_task(config)
    places, samples = typical_step(task)
    torch.manual_seed(config.seed)
    padded = PaddedLoop(config, samples, workers.device)
    packed = PackedLoop(task, places, samples, workers)
    steps: dict[str, Callable[[], float]] = {"padded": padded.step, "packed": packed.step}
    if variants:
        names = {True: "recomputed layers", False: "kept layers"}, {True: "chunked loss", False: "all logits"}
        del steps["packed"]
        for recomputed in (False, True):
            for chunked in (False, True):
                steps[f"packed, {names[0][recomputed]}, {names[1][chunked]}"] = packed.variant(recomputed, chunked)
    ours = list(steps)[-1] if variants else "packed"
    losses = {"padded": padded.step(), "packed": steps[ours]()}
    if abs(losses["padded"] - losses["packed"]) > (1e-4 if config.precision == "fp32" else 0.02) * losses["padded"]:
        raise RuntimeError(f"the loops do not compute the same: {losses}")

    lengths = [len(sample.input_ids) for sample in samples]
    tokens, images = sum(lengths), sum(len(sample.pixel_values) for sample in samples)
    busy: dict[str, list[float]] = {name: [] for name in steps}
    seconds = compare({name: timed(step, busy[name]) for name, step in steps.items()}, rounds, workers.device.type)
    memory = {name: peak_memory(step, workers.device) for name, step in steps.items()}
    answers = sum(int((sample.labels != IGNORE_INDEX).sum()) for sample in samples)
    peak, flops = peak_flops(workers.device), model_flops(task.model, images, tokens, answers)
    loops = {
        name: {
            "seconds": round(seconds[name], 3),
            "tokens_per_second": round(tokens / seconds[name], 1),
            "cpu_seconds": round(statistics.median(busy[name][1:]), 3),
            "memory_gib": round(memory[name] / 2**30, 3),
            **({"mfu": round(flops / seconds[name] / peak, 4)} if peak else {}),
        }
        for name in steps
    }
    return {
        "step": f"{len(samples)} samples, {config.micro_batch_size} at a time, {config.precision}, task {config.task}",
        "sample_tokens": {"shortest": min(lengths), "median": statistics.median(lengths), "longest": max(lengths)},
        "padding": round(padding(samples, config.micro_batch_size), 3),
        "first_loss": {name: round(loss, 5) for name, loss in losses.items()},
        "loops": loops,
        "times_as_fast": {name: round(seconds["padded"] / seconds[name], 2) for name in steps if name != "padded"},
    }


def timed(step: Callable[[], Any], busy: list[float]) -> Callable[[], None]:
    """The step, which also notes what it took of the processor: a busy machine makes the clock run, but hardly that."""

    def run() -> None:
        started = time.process_time()
        step()
        busy.append(time.process_time() - started)

    return run


def peak_memory(step: Callable[[], Any], device: torch.device) -> int:
    """Most bytes that a step has allocated at any time beside what was there before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with LiveMemory([each for each in gc.get_objects() if issubclass(type(each), Tensor)]) as memory:
        step()
    return memory.peak


def time_loader(config: TrainConfig, workers: Workers) -> dict[str, Any]:
    """Medians of what the loop waits for its samples, made in between or by another process, and how long they take to make."""
    task = build_task(config)
    strategy = LocalStrategy(task.train(), config, workers)
    dataset, text_length = training_data(task)
    scales = dict.fromkeys(task.weights, 1e-4)
    found: dict[str, Any] = {}
    for name, processes in (("in between", 0), ("by another process", 1)):
        sampler = MicroBatchSampler(config, STEPS, 0, 0, 1, text_length)
        waits, steps = [], []
        with closing(load(dataset, sampler, task.collate, processes)) as batches:
            for _ in range(STEPS):
                started = time.perf_counter()
                mine = [next(batches) for _ in range(config.batch_size // config.micro_batch_size)]
                waits.append(time.perf_counter() - started)
                strategy.step([MicroBatch(batch, scales, seed=0) for batch in mine], 1.0)
                steps.append(time.perf_counter() - started)
        # The first step waits for the process to start.
        found[name] = {"waited": round(statistics.median(waits[1:]), 4), "step": round(statistics.median(steps[1:]), 3)}
    return {"samples_of_a_step": config.batch_size, "seconds": found}


def time_checkpoint(config: TrainConfig, workers: Workers, rounds: int) -> dict[str, Any]:
    """Medians of how long a save holds up the loop, and of when it is written."""
    strategy = LocalStrategy(build_task(config), config, workers)
    strategy.step([], 1.0)  # moments exist from the first step
    held, written = [], []
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        checkpoints = Checkpoints(Storage.at(str(root / "run"), root / "scratch"), root / "scratch", config.checkpoint, workers)
        for step in range(1, rounds + 1):
            started = time.perf_counter()
            checkpoints.save(strategy, step, {})
            held.append(time.perf_counter() - started)
            checkpoints.wait()
            written.append(time.perf_counter() - started)
            if checkpoints.failure:
                raise RuntimeError(checkpoints.failure)
        size = sum(path.stat().st_size for path in (root / "run" / "checkpoints" / f"step-{rounds:08d}").iterdir())
    return {
        "megabytes": round(size / 1e6, 1),
        "seconds": {"loop_held_up": round(statistics.median(held), 3), "written_after": round(statistics.median(written), 3)},
    }


# ---- results ---------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--shape", default="playground", choices=("playground", "7b", "13b"))
    parser.add_argument("--layers", type=int, default=4, help="of the decoder, if the shape is not the playground's")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--micro-batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    workers = Workers(0, 1, torch.device(options.device))
    results: dict[str, Any] = {"hardware": hardware(options.device), "load_before": [round(x, 1) for x in os.getloadavg()]}
    with tempfile.TemporaryDirectory() as directory:
        playground = options.shape == "playground"
        start: dict[str, Any] = (
            {"init": "playground"} if playground else write_shape(Path(directory), options.shape, options.layers)
        )
        conversations = TrainConfig(
            output=directory,
            **start,
            train=("vision_tower", "projector", "region_encoder", "decoder") if playground else TrainConfig.train,
            data=DataConfig(sources=(write_conversations(Path(directory), STEPS_LOOKED_AT * options.batch_size),)),
            steps=STEPS,
            batch_size=options.batch_size,
            micro_batch_size=options.micro_batch_size,
            optimizer=OptimizerConfig(learning_rate=1e-6),
            device=options.device,
        )

        def record(name: str, measure: Callable[[], dict[str, Any]]) -> None:
            results[name] = measure()
            print(name, json.dumps(results[name], indent=1), flush=True)

        if playground:
            trained = TrainConfig.load(CONFIGS / "playground.yaml", [f"output={directory}", "init=playground"])
            trained = replace(trained, device=options.device)
            exact = replace(conversations, precision="fp32")
            record("conversations of 1 to 12 turns", lambda: compare_loops(conversations, workers, options.rounds))
            record("the same in float32", lambda: compare_loops(exact, workers, options.rounds))
            record("the playground as it is trained", lambda: compare_loops(trained, workers, options.rounds))
            record("samples made", lambda: time_loader(conversations, workers))
            record("a checkpoint", lambda: time_checkpoint(trained, workers, options.rounds))
        else:
            name = f"{options.layers} layers of the shape {options.shape}"
            record(name, lambda: compare_loops(conversations, workers, options.rounds, variants=True))
    shape = "" if playground else f"{options.shape}_"
    print(write_result(f"training_{shape}{options.device}", results))


if __name__ == "__main__":
    main()
