"""The training data as one endless sequence of samples.

    mixture = Mixture(config.data.sources, processor, config.data, config.seed)
    mixture[g]      # sample g of the run: record k of epoch e, with e, k = divmod(g, len(mixture))

A sample is a function of the sources, the seed and g alone: workers may come and go, and a run goes on where it stopped.
Each epoch is a new order, and a new choice of the records that are seen a fraction of the time.

Records that cannot be used are left out, up to `data.skip_bad` different ones, each reported once; the next usable one of the
epoch takes the place. Processes that load data for the same training process mark them in shared memory and so count
together; two that find the last allowed ones in the same moment may exceed the limit. Each training process counts for itself.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from ferret_core.data.config import DataConfig, SourceConfig
from ferret_core.data.files import PLACES, RecordFile
from ferret_core.data.images import Images
from ferret_core.data.samples import Sample, build_sample
from ferret_core.model import FerretProcessor

log = logging.getLogger(__name__)

_KEPT_EPOCHS = 2  # where one ends, batches of both are asked for


def mixture_order(lengths: Sequence[int], weights: Sequence[float], rng: random.Random) -> np.ndarray:
    """One epoch of sources laid end to end, as the original mixes them.

    Args:
        lengths: how many records each source has.
        weights: how often each is seen: 2.5 is every record twice, and a random half of them, at least one, once more.
        rng: of those choices and of the order.

    Returns:
        int64: where each record of the epoch lies among all records.
    """
    order: list[int] = []
    start = 0
    for length, (whole, extra) in zip(lengths, map(_copies, lengths, weights), strict=True):
        records = range(start, start + length)
        order += [*records] * whole
        order += rng.sample(records, extra)
        start += length
    rng.shuffle(order)
    return np.array(order)


def _copies(length: int, weight: float) -> tuple[int, int]:
    """How often all records of a source are seen, and how many of them once more."""
    whole, part = divmod(weight, 1)
    return int(whole), max(1, round(part * length)) if part else 0


class Mixture(Dataset[Sample]):
    """Samples of weighted sources, by their place in the run."""

    def __init__(self, sources: Sequence[SourceConfig], processor: FerretProcessor, data: DataConfig, seed: int) -> None:
        """
        Args:
            sources: `data.sources`, or `data.validation`.
            processor: of the model.
            data: how samples are made of records.
            seed: of the order, and of every choice in a sample.

        Raises:
            ValueError: no source, or one without records. FileNotFoundError: no such file.
        """
        if not sources:
            raise ValueError("data.sources: needs at least one file of records")
        sources = [file for source in sources for file in source.files()]
        self.processor, self.data, self.seed = processor, data, seed
        self.images = [Images(source.images or Path(source.path).parent) for source in sources]
        self.files = [RecordFile(source.path, images) for source, images in zip(sources, self.images, strict=True)]
        for source, file in zip(sources, self.files, strict=True):
            if not len(file):
                raise ValueError(f"{source.path}: has no records")
        self.weights = [source.weight for source in sources]
        self._lengths = [len(file) for file in self.files]
        self._length = sum(
            whole * length + extra
            for length, (whole, extra) in zip(self._lengths, map(_copies, self._lengths, self.weights), strict=True)
        )
        self._ends = np.cumsum(self._lengths)
        self._text_lengths = np.concatenate([file.text_lengths for file in self.files])
        self._bad = torch.zeros(len(self._text_lengths), dtype=torch.bool).share_memory_()
        self._orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        """Samples of an epoch."""
        return self._length

    def __getitem__(self, index: int) -> Sample:
        """Sample `index` of the run. Raises `ValueError` naming the file, the line and what is wrong with it."""
        epoch, first = divmod(index, len(self))
        order = self._order(epoch)
        for offset in range(len(order)):
            place = int(order[(first + offset) % len(order)])
            try:
                return self._build(place, random.Random(f"{self.seed}:{index}"))
            except ValueError as error:
                self._leave_out(place, error)
        raise ValueError("data.sources: not one record can be used")

    def text_length(self, index: int) -> int:
        """Characters of the questions and answers of sample `index`."""
        epoch, place = divmod(index, len(self))
        return int(self._text_lengths[self._order(epoch)[place]])

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            while len(self._orders) >= _KEPT_EPOCHS:
                del self._orders[min(self._orders)]
            self._orders[epoch] = mixture_order(self._lengths, self.weights, random.Random(f"{self.seed}:epoch {epoch}"))
        return self._orders[epoch]

    def _locate(self, place: int) -> tuple[int, int]:
        """The source of a record, and its number there."""
        source = int(np.searchsorted(self._ends, place, side="right"))
        return source, place - int(self._ends[source]) + self._lengths[source]

    def _build(self, place: int, rng: random.Random) -> Sample:
        source, number = self._locate(place)
        file = self.files[source]
        record = file[number]  # its own errors say where it is
        try:
            image = self.images[source].open(record) if record.image else None
            return build_sample(record, image, self.processor, self.data, rng)
        except ValueError as error:
            line = f"{file.path}: {PLACES[file.path.suffix]} {number + 1}"
            raise ValueError(f"{line} ({record.dataset or file.path.stem}): {error}") from error

    def _leave_out(self, place: int, error: ValueError) -> None:
        """Marks and reports a bad record; raises its error if it is one too many."""
        known = bool(self._bad[place])
        self._bad[place] = True
        count = int(self._bad.sum())
        if count > self.data.skip_bad:
            limit = f"data.skip_bad = {self.data.skip_bad} allows no more" if self.data.skip_bad else "data.skip_bad is 0"
            raise ValueError(f"{error} (bad record {count}; {limit})") from error
        if not known:
            log.warning("left out: %s (%d of data.skip_bad = %d)", error, count, self.data.skip_bad)
