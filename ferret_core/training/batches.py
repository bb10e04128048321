"""Which samples make up a step: a function of the step alone, whoever computes it.

A global batch of B samples is dealt into B / m micro-batches of m samples and much the same length. Micro-batch i is for
worker i mod W, so any number of workers makes the same micro-batches, and a run can go on with another number. Workers
without one for their last turn repeat one of theirs with weight zero: all have to take part in every exchange.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ferret_core.training.config import TrainConfig

_T = TypeVar("_T")


def deal(samples: range, micro_batch_size: int, text_length: Callable[[int], int]) -> list[list[int]]:
    """Micro-batches of a global batch, balanced: the longest samples go around first, each round in the other direction."""
    count = len(samples) // micro_batch_size
    ranked = sorted(samples, key=text_length, reverse=True)
    micro_batches: list[list[int]] = [[] for _ in range(count)]
    for start in range(0, len(ranked), count):
        turn = ranked[start : start + count]
        for i, sample in enumerate(turn if start // count % 2 == 0 else reversed(turn)):
            micro_batches[i].append(sample)
    return micro_batches


def accumulation_steps(micro_batches: int, world: int) -> int:
    """Micro-batches that each of `world` workers computes of so many."""
    return math.ceil(micro_batches / world)


def share(micro_batches: Sequence[_T], rank: int, world: int) -> list[tuple[_T, bool]]:
    """One worker's micro-batches, as many as everyone's; False marks one that is repeated and counts for nothing."""
    turns = range(rank, accumulation_steps(len(micro_batches), world) * world, world)
    return [(micro_batches[i], True) if i < len(micro_batches) else (micro_batches[0], False) for i in turns]


class MicroBatchSampler(Sampler[list[int]]):
    """The micro-batches of one worker, step by step, from `first_step` to the end."""

    def __init__(
        self, config: TrainConfig, steps: int, first_step: int, rank: int, world: int, text_length: Callable[[int], int]
    ) -> None:
        self.config, self.steps, self.first_step = config, steps, first_step
        self.rank, self.world, self.text_length = rank, world, text_length

    def __iter__(self) -> Iterator[list[int]]:
        size = self.config.batch_size
        for step in range(self.first_step, self.steps):
            micro_batches = deal(range(step * size, (step + 1) * size), self.config.micro_batch_size, self.text_length)
            yield from (samples for samples, _ in share(micro_batches, self.rank, self.world))

    def __len__(self) -> int:
        return (self.steps - self.first_step) * accumulation_steps(self.config.micro_batches, self.world)


def total_steps(config: TrainConfig, dataset: Any) -> int:
    """Steps of the whole run."""
    return config.steps or math.ceil(config.epochs * len(dataset) / config.batch_size)


def load(
    dataset: Dataset, sampler: Iterable[list[int]], collate: Callable[[list], Any], workers: int = 0, pin_memory: bool = False
) -> Generator[Any]:
    """Micro-batches of a dataset, made by `workers` processes ahead of need, which end when this is closed.

    Raises what the dataset raises.
    """
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=_quiet_worker,
        prefetch_factor=4 if workers else None,
        pin_memory=pin_memory,
    )
    batches = iter(loader)
    try:
        yield from batches
    except ValueError as error:  # of a process, with its traceback as text
        raise ValueError(str(error).strip().rpartition("\nValueError: ")[2]) from error
    finally:
        del batches


def _quiet_worker(_: int) -> None:
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):  # may reach the whole process group; the parent decides when to stop
        signal.signal(number, signal.SIG_IGN)
