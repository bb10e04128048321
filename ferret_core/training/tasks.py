"""What a training run teaches: a task makes batches out of samples, and losses out of batches.

A loss is a sum over terms (answer tokens, patches, ...), divided by the number of such terms in the whole step: what a
worker computes does not depend on how the step was divided among workers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ferret_core.data.mixture import Mixture
from ferret_core.data.records import Split
from ferret_core.data.samples import pack
from ferret_core.model import FerretForConditionalGeneration, FerretProcessor
from ferret_core.model.modeling import IGNORE_INDEX
from ferret_core.model.packing import packed
from ferret_core.training.config import TrainConfig

Batch = dict[str, Any]
Means = dict[str, tuple[Tensor, Tensor]]
"""Sums and counts: what they are means of."""


class Task(nn.Module, ABC):
    """A dataset for each part of the data, how its samples form a batch, and the losses of a batch."""

    weights: dict[str, float]
    """The losses and their weights."""

    def __init__(self, model: FerretForConditionalGeneration, processor: FerretProcessor, config: TrainConfig) -> None:
        super().__init__()
        self.model, self.processor, self.config = model, processor, config

    @abstractmethod
    def dataset(self, split: Split) -> Dataset | None:
        """Samples by their place in the run; None if there are none of the split."""

    def collate(self, samples: list) -> Batch:
        """One batch."""
        return pack(samples)

    @abstractmethod
    def counts(self, batch: Batch) -> dict[str, int]:
        """How many terms each loss has."""

    @abstractmethod
    def terms(self, batch: Batch) -> tuple[dict[str, Tensor], Means]:
        """The sum of each loss's terms, and further means to report."""

    def forward(self, batch: Batch, scales: dict[str, float]) -> tuple[Tensor, Means]:
        """The losses' sums times `scales`, to be minimised; and everything to report."""
        terms, means = self.terms(batch)
        loss = sum((scales[name] * value for name, value in terms.items()), start=torch.zeros((), device=self.model.device))
        counts = self.counts(batch)
        sums = {f"{name}_loss": (value.detach(), torch.tensor(counts[name])) for name, value in terms.items()}
        return loss, sums | means


class InstructTask(Task):
    """Next-token prediction on the answers of grounded conversations."""

    weights = {"answers": 1.0}  # noqa: RUF012

    def dataset(self, split: Split) -> Dataset | None:
        """The mixture of the configured sources."""
        sources = self.config.data.sources if split == "train" else self.config.data.validation
        return Mixture(sources, self.processor, self.config.data, self.config.seed) if sources else None

    def counts(self, batch: Batch) -> dict[str, int]:
        return {"answers": int((batch["labels"] != IGNORE_INDEX).sum())}

    def terms(self, batch: Batch) -> tuple[dict[str, Tensor], Means]:
        hidden, _, _ = self.hidden(batch)
        return self.answers(hidden, batch["labels"])[:2]

    def hidden(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The decoder's last hidden states `(1, T, D)`, the image features `(I, N, d)` and the region features `(R, D)`."""
        model = self.model.model
        pixels, points, owners = batch["pixel_values"].to(self.model.dtype), batch["region_points"], batch["region_image"]
        images, regions = len(pixels), len(points)
        # A batch without an image or a region still runs every part, on nothing: workers must all take part in exchanges.
        if not images:
            size = self.model.config.vision_config.image_size
            pixels = pixels.new_zeros(1, 3, size, size)
        if not regions:
            points, owners = points.new_full((1, self.model.config.sampler_points, 2), 0.5), owners.new_zeros(1)
        image_features = model.encode_images(pixels)
        region_features = model.encode_regions(image_features, points, owners)
        embeddings = model.embed_prompt(
            batch["input_ids"], image_features[:images] if images else None, region_features[:regions]
        )
        if not images:
            embeddings = embeddings + 0 * model.multi_modal_projector(image_features).sum()
        if not regions:
            embeddings = embeddings + 0 * region_features.sum()
        outputs = model.language_model(
            inputs_embeds=embeddings, position_ids=batch["position_ids"], **packed(batch["cu_seq_lens"], batch["max_length"])
        )
        return outputs.last_hidden_state, image_features[:images], region_features[:regions]

    def answers(self, hidden: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], Means, tuple[Tensor, Tensor]]:
        """The loss of the answers, the share of right tokens, and the targets with what was predicted."""
        targets = labels[:, 1:]
        kept = targets != IGNORE_INDEX
        targets = targets[kept]
        loss, predictions = self.model.lm_head(hidden[:, :-1][kept], targets)
        return {"answers": loss}, {"accuracy": mean_of(predictions == targets)}, (targets, predictions)


def mean_of(values: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and count of values."""
    values = values.detach().double()
    return values.sum(), torch.tensor(values.numel())
