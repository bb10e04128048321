"""What a training run can teach: a task makes batches and turns a batch into a loss."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from ferret_core.data.playground import THINGS
from ferret_core.model import FerretForConditionalGeneration, FerretProcessor
from ferret_core.model.modeling import IGNORE_INDEX
from ferret_core.training.config import TrainConfig
from ferret_core.training.samples import DenseDataset, InstructionDataset, collate

Batch = dict[str, Tensor]


class Task(Protocol):
    """A dataset for each split, how its samples form a batch, and the loss of a batch."""

    module: nn.Module
    """Everything that is trained: the model, and what the task adds to it."""

    def dataset(self, split: str, config: TrainConfig, length: int = 2**31) -> Dataset:
        """Samples of a split."""
        ...

    def collate(self, samples: list) -> Batch:
        """One batch."""
        ...

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The loss to minimise, and metrics to log."""
        ...


class InstructTask:
    """Next-token prediction on the answers of grounded conversations."""

    def __init__(self, model: FerretForConditionalGeneration, processor: FerretProcessor) -> None:
        self.module = self.model = model
        self.processor = processor
        numbers = processor.tokenizer.convert_tokens_to_ids([str(i) for i in range(1001)])
        self._is_number = torch.zeros(model.config.text_config.vocab_size, dtype=torch.bool)
        self._is_number[[i for i in numbers if i is not None]] = True

    def dataset(self, split: str, config: TrainConfig, length: int = 2**31) -> Dataset:
        """Conversations of `config.turns` questions."""
        first = config.first_scene if split == "train" else 0
        return InstructionDataset(split, self.processor, config.turns, first, length)

    collate = staticmethod(collate)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy; the accuracy of words and of coordinates, teacher-forced."""
        hidden = self.model.model(
            input_ids=batch["input_ids"],
            pixel_values=batch["pixel_values"],
            region_points=batch["region_points"],
            use_cache=False,
        ).last_hidden_state
        targets = batch["labels"][:, 1:]
        kept = targets != IGNORE_INDEX
        logits, targets = self.model.lm_head(hidden[:, :-1][kept]).float(), targets[kept]
        loss = F.cross_entropy(logits, targets)
        with torch.no_grad():
            right = logits.argmax(-1) == targets
            number = self._is_number.to(targets.device)[targets]
            metrics = {"words": right[~number].float().mean().item(), "numbers": right[number].float().mean().item()}
        return loss, metrics


class DenseTask:
    """What is under every patch, and its box: a head start for the vision tower, as CLIP's has had one."""

    def __init__(self, model: FerretForConditionalGeneration, processor: FerretProcessor) -> None:
        self.model, self.processor = model.model, processor
        width = model.config.vision_config.hidden_size
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(self._outputs)))
        self.module = nn.ModuleDict({"vision_tower": model.model.vision_tower, "head": self.head})

    _outputs = (1, len(THINGS), 4)

    def dataset(self, split: str, config: TrainConfig, length: int = 2**31) -> Dataset:
        """Scenes with dense labels."""
        return DenseDataset(split, self.processor, config.first_scene if split == "train" else 0, length)

    collate = staticmethod(default_collate)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropies of "is there anything" and, on things, of what it is; plus the L1 distance of its box."""
        features = self.model.encode_images(batch["pixel_values"])
        thing, names, boxes = self.head(features).float().split(self._outputs, dim=-1)
        shown = batch["kinds"] > 0
        names, kinds = names[shown], batch["kinds"][shown] - 1
        distance = (boxes[shown].sigmoid() - batch["boxes"][shown]).abs().mean()
        presence = F.binary_cross_entropy_with_logits(thing[..., 0], shown.float())
        loss = presence + F.cross_entropy(names, kinds) + 5 * distance
        return loss, {
            "names": (names.argmax(-1) == kinds).float().mean().item(),
            "presence": ((thing[..., 0] > 0) == shown).float().mean().item(),
            "box_l1": distance.item(),
        }


TASKS = {"instruct": InstructTask, "dense": DenseTask}
