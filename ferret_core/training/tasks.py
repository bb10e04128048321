"""What a training run can teach: a task makes batches and turns a batch into a loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from ferret_core.data.playground import THINGS, Split
from ferret_core.model import FerretForConditionalGeneration, FerretProcessor
from ferret_core.model.modeling import IGNORE_INDEX
from ferret_core.training.config import TrainConfig
from ferret_core.training.number_code import CODE_WIDTH, number_code
from ferret_core.training.samples import DenseDataset, InstructionDataset, collate

Batch = dict[str, Tensor]


class Task(Protocol):
    """A dataset for each split, how its samples form a batch, and the loss of a batch."""

    module: nn.Module
    """Everything that is trained: the model, and what the task adds to it."""

    def dataset(self, split: Split, config: TrainConfig) -> Dataset:
        """Samples of a split, by scene."""
        ...

    def collate(self, samples: list) -> Batch:
        """One batch."""
        ...

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The loss to minimise, and metrics to log."""
        ...


class InstructTask:
    """Next-token prediction on the answers of grounded conversations.

    Beside it, every patch and every region names what it shows, through the language model's own head: so it enters the
    decoder as something like the word for it, which is easier to pass on than a code of its own.
    """

    def __init__(self, model: FerretForConditionalGeneration, processor: FerretProcessor, config: TrainConfig) -> None:
        self.name_weight = config.name_weight
        self.module: nn.Module = model
        self.model = model
        self.processor = processor
        values = {token: int(text) for text, token in processor.tokenizer.get_vocab().items() if text.isdecimal()}
        self._number = torch.tensor([values.get(token, -1) for token in range(model.config.text_config.vocab_size)])

    def dataset(self, split: Split, config: TrainConfig) -> Dataset:
        """Conversations of `config.turns` questions."""
        return InstructionDataset(split, self.processor, config.turns, config.max_length)

    collate = staticmethod(collate)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy; teacher-forced, the share of right words and the mean error of numbers, in text bins."""
        model, head = self.model.model, self.model.lm_head
        image_features = model.encode_images(batch["pixel_values"])
        region_features = model.encode_regions(image_features, batch["region_points"], batch["region_image"])
        embeddings = model.embed_prompt(batch["input_ids"], image_features, region_features)
        hidden = model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        targets = batch["labels"][:, 1:]
        kept = targets != IGNORE_INDEX
        logits, targets = head(hidden[:, :-1][kept]).float(), targets[kept]
        loss = F.cross_entropy(logits, targets)

        naming = {}
        if self.name_weight:
            patches, naming["patch_names"] = self._naming(model.multi_modal_projector(image_features), batch["patch_names"])
            regions, naming["region_names"] = self._naming(region_features, batch["region_names"])
            loss = loss + self.name_weight * (patches + regions)
        with torch.no_grad():
            answers = logits.argmax(-1)
            number = self._number.to(targets.device)
            numbers = number[targets] >= 0
            metrics = {
                **naming,
                "words": (answers == targets)[~numbers].float().mean().item(),
                "number_error": (number[answers] - number[targets])[numbers].abs().float().mean().item(),
            }
        return loss, metrics

    def _naming(self, features: Tensor, names: Tensor) -> tuple[Tensor, float]:
        """Cross-entropy and accuracy of the names `(...)` that the head reads from features `(..., D)`."""
        shown = names != IGNORE_INDEX
        logits, names = self.model.lm_head(self.model.model.language_model.norm(features[shown])).float(), names[shown]
        count = max(1, len(names))
        return F.cross_entropy(logits, names, reduction="sum") / count, (logits.argmax(-1) == names).sum().item() / count


class DenseTask:
    """What is under every patch, and its box: a head start for the vision tower, as CLIP's has had one."""

    _outputs = (1, len(THINGS), 4 * CODE_WIDTH)

    def __init__(self, model: FerretForConditionalGeneration, processor: FerretProcessor, config: TrainConfig) -> None:
        self.model, self.processor = model.model, processor
        width = model.config.vision_config.hidden_size
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(self._outputs)))
        self.module: nn.Module = nn.ModuleDict({"vision_tower": model.model.vision_tower, "head": self.head})
        self._code = number_code()

    def dataset(self, split: Split, config: TrainConfig) -> Dataset:
        """Scenes with dense labels."""
        return DenseDataset(split, self.processor)

    collate = staticmethod(default_collate)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropies of "is there anything" and, on things, of what it is and of the four numbers of its box."""
        features = self.model.encode_images(batch["pixel_values"])
        thing, names, numbers = self.head(features).float().split(self._outputs, dim=-1)
        shown = batch["kinds"] > 0
        names, kinds, boxes = names[shown], batch["kinds"][shown] - 1, batch["boxes"][shown]
        numbers = numbers[shown].unflatten(-1, (4, CODE_WIDTH)) @ self._code.to(features.device).T
        loss = (
            F.binary_cross_entropy_with_logits(thing[..., 0], shown.float())
            + F.cross_entropy(names, kinds)
            + F.cross_entropy(numbers.flatten(0, 1), boxes.flatten())
        )
        with torch.no_grad():
            metrics = {
                "names": (names.argmax(-1) == kinds).float().mean().item(),
                "presence": ((thing[..., 0] > 0) == shown).float().mean().item(),
                "number_error": (numbers.argmax(-1) - boxes).abs().float().mean().item(),
            }
        return loss, metrics


TASKS: dict[str, Callable[[FerretForConditionalGeneration, FerretProcessor, TrainConfig], Task]] = {
    "instruct": InstructTask,
    "dense": DenseTask,
}
