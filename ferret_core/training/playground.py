"""Learning from the playground, whose scenes are made on the fly and tell more than any data set.

Beside the answers, `PlaygroundTask` teaches what a model of this size does not find by itself in reasonable time:

* every patch and every region names what it shows, through the language model's own head, so that it enters the decoder as
  something like the word for it;
* two attention heads each of three layers are told where to look, and what they do with it is left to the answers: a name at
  the patches that show such a thing, or at the start of the text if none does; what stands before an answer or a box at the
  name that it is about; and the name and the numbers of a box at the patches of what is in the box.

`DenseTask` teaches the vision tower alone what is where: a head start, as CLIP's tower has had one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from ferret_core.data.playground import (
    NAMED,
    THINGS,
    WORLDS,
    Example,
    Scene,
    Split,
    generate_scene,
    playground_example,
    scene_rng,
)
from ferret_core.data.samples import Sample, pack
from ferret_core.geometry import Box, to_bins
from ferret_core.model import FerretForConditionalGeneration, FerretProcessor
from ferret_core.model.modeling import IGNORE_INDEX
from ferret_core.prompt import IMAGE_TOKEN, Turn, answer_ranges, build_prompt, mentioned_boxes, write_boxes
from ferret_core.training.config import TrainConfig
from ferret_core.training.number_code import CODE_WIDTH, number_code
from ferret_core.training.tasks import Batch, InstructTask, Means, Task, mean_of

LOOKING_LAYERS = {"name": 1, "mention": 2, "object": 3}
"""The decoder layers whose attention is told where to look, by what looks."""
LOOKING_HEADS = 2
_LOOKING_ENOUGH = 0.95  # of a head's weight on the right tokens: no more is asked

_NAME = re.compile(rf"\b({'|'.join(sorted(NAMED, key=len, reverse=True))})\b")
_BOX = re.compile(r"\[(\d+), (\d+), (\d+), (\d+)\]")
_THING_INDEX = {thing.name: i for i, thing in enumerate(THINGS)}


@dataclass(frozen=True, slots=True)
class Look:
    """Tokens of a sample, and the tokens that they should look at."""

    tokens: Tensor
    """int64 `(K,)`: positions in `input_ids`."""
    targets: Tensor
    """bool `(K, L)`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaygroundSample(Sample):
    """A sample and what the scene tells beside it."""

    patch_names: Tensor
    """int64 `(N,)`: for each patch, the first token of the name of what is under its centre; -100 for background."""
    region_names: Tensor
    """int64 `(R,)`: for each region, the first token of the name of the thing under most of its points; -100 for none."""
    looks: dict[str, Look]
    """By key of `LOOKING_LAYERS`."""


def build_playground_sample(
    example: Example, processor: FerretProcessor, max_length: int, generator: torch.Generator | None = None
) -> PlaygroundSample:
    """The training sample of an example, with as many of its turns as fit.

    Raises `ValueError` if not even the first turn does: nothing is cut in the middle, least of all the image.
    """
    record, scene = example.record, example.scene
    turns = [Turn(t.question, write_boxes(t.answer or "", record.boxes, record.size)) for t in record.turns]
    while True:
        prompt, regions = build_prompt(turns, example.regions, record.size)
        before, after = prompt.split(IMAGE_TOKEN)
        head = torch.tensor(processor.token_ids(before + IMAGE_TOKEN))
        tail = processor.tokenizer(after, return_offsets_mapping=True)
        if len(head) + len(tail.input_ids) - 1 <= max_length:
            break
        turns.pop()
        if not turns:
            raise ValueError(f"record {record.id}: its first turn is longer than data.max_length = {max_length}")
    ids = torch.tensor(tail.input_ids[1:])  # without its BOS
    labels = torch.full_like(ids, IGNORE_INDEX)
    offsets = torch.tensor(tail.offset_mapping[1:])
    for start, end in answer_ranges(after):
        inside = (offsets[:, 0] >= start) & (offsets[:, 1] <= end)
        labels[inside] = ids[inside]
    points = [processor.region_points(region, record.size, generator) for region in regions]
    region_points = torch.stack(points) if points else torch.zeros(0, processor.sampler_points, 2)

    names = torch.tensor([IGNORE_INDEX, *(processor.tokenizer(f" {o.thing.name}").input_ids[1] for o in scene.objects)])
    counts = F.one_hot(_instances_at(region_points, scene), len(names)).sum(1)
    counts[:, 0] = 0  # a box covers background as well
    instances = _instances_at(_patch_centers(processor), scene)
    boxes = [record.boxes[n] for turn in record.turns[: len(turns)] for n in mentioned_boxes(turn.answer or "")]
    return PlaygroundSample(
        input_ids=torch.cat((head, ids)),
        labels=torch.cat((torch.full_like(head, IGNORE_INDEX), labels)),
        pixel_values=processor.pixel_values([example.image]),
        region_points=region_points,
        patch_names=names[instances],
        region_names=names[counts.argmax(-1)],
        looks=_looks(after, tail.offset_mapping[1:], len(head), boxes, scene, instances),
    )


def _looks(
    text: str, offsets: list[tuple[int, int]], start: int, boxes: list[Box], scene: Scene, instances: Tensor
) -> dict[str, Look]:
    """What should look where, in a sample whose image ends before token `start` and is followed by `text`.

    Args:
        text: the conversation after the image.
        offsets: the first and last character of each of its tokens.
        start: the position of its first token.
        boxes: the boxes that its answers write, in order.
        scene: what the image shows.
        instances: for each patch, `_instances_at` its centre.
    """
    length, first_patch = start + len(offsets), start - len(instances)
    ending = {end: start + i for i, (_, end) in enumerate(offsets)}  # the token that ends with a character
    found: dict[str, list[tuple[int, Tensor]]] = {kind: [] for kind in LOOKING_LAYERS}

    def hint(kind: str, token: int, targets: Tensor) -> None:
        if targets.any():
            found[kind].append((token, targets))

    def patches(objects: Iterable[int]) -> Tensor:
        shown = torch.isin(instances, torch.tensor([i + 1 for i in objects]))
        return F.pad(shown, (first_patch, length - start))

    def tokens(positions: Iterable[int]) -> Tensor:
        return torch.zeros(length, dtype=torch.bool).index_fill_(0, torch.tensor(list(positions), dtype=torch.long), True)

    names = [match for match in _NAME.finditer(text) if match.end() in ending]
    for match in names:
        alike = [i for i, o in enumerate(scene.objects) if o.thing == NAMED[match[1]]]
        hint("name", ending[match.end()], patches(alike) if alike else tokens([0]))

    index = {o.box: i for i, o in enumerate(scene.objects)}
    remaining = iter(boxes)
    asked_from = 0
    for answer_start, answer_end in answer_ranges(text):
        question = [ending[m.end()] for m in names if asked_from <= m.start() < answer_start]
        if answer_start in ending:
            hint("mention", ending[answer_start], tokens(question))
        answer_names = [m for m in names if answer_start <= m.start() < answer_end]
        shown: dict[int, list[int]] = {}  # the objects whose boxes follow a name, by where it ends
        for match in _BOX.finditer(text, answer_start, answer_end):
            i = index[next(remaining)]
            before_box = [m for m in answer_names if m.start() < match.start()]
            if before_box:
                shown.setdefault(before_box[-1].end(), []).append(i)
            about = [ending[m.end()] for m in before_box if NAMED[m[1]] == scene.objects[i].thing]
            for number in range(1, 5):
                if match.end(number) in ending:
                    before = ending[match.end(number)] - 1
                    hint("object", before, patches([i]))
                    if number == 1:
                        hint("mention", before, tokens(about[-1:]))
        for match in answer_names:
            last = ending.get(match.start() - 1)
            if last and match.end() in shown and text.startswith(" [", match.end()):
                for token in (last - 1, last):  # which write "two" and "dogs"
                    hint("object", token, patches(shown[match.end()]))
        asked_from = answer_end
    return {
        kind: Look(
            torch.tensor([token for token, _ in pairs], dtype=torch.long),
            torch.stack([targets for _, targets in pairs]) if pairs else torch.zeros(0, length, dtype=torch.bool),
        )
        for kind, pairs in found.items()
    }


def _patch_centers(processor: FerretProcessor) -> Tensor:
    """Float32 `(N, 2)`: x / width and y / height of the centre of each patch, row-major."""
    side = math.isqrt(processor.num_patches)
    rows, columns = torch.meshgrid(*2 * [(torch.arange(side) + 0.5) / side], indexing="ij")
    return torch.stack((columns, rows), dim=-1).flatten(0, 1)


def _instances_at(points: Tensor, scene: Scene) -> Tensor:
    """What is at points `(..., 2)` in [0, 1): int64 `(...)`, i + 1 for object i, 0 for background and for NaN."""
    x, y = (points.nan_to_num() * torch.tensor(scene.size)).long().unbind(-1)
    return torch.from_numpy(scene.instances)[y, x].long() * ~points.isnan().any(-1)


class ConversationDataset(Dataset[PlaygroundSample]):
    """Playground conversations, without end: a sample is a function of (split, scene)."""

    def __init__(self, split: Split, processor: FerretProcessor, config: TrainConfig) -> None:
        self.split, self.processor = split, processor
        self.turns, self.max_length = config.playground.turns, config.data.max_length
        self.first = config.playground.first_scene if split == "train" else 0
        self.style = config.playground.style if split == "train" else None

    def __getitem__(self, index: int) -> PlaygroundSample:
        scene = self.first + index
        example = playground_example(self.split, scene, self.turns, style=self.style)
        generator = torch.Generator().manual_seed(scene)
        return build_playground_sample(example, self.processor, self.max_length, generator)


class PlaygroundTask(InstructTask):
    """`InstructTask` with the playground's hints."""

    def __init__(self, model: FerretForConditionalGeneration, processor: FerretProcessor, config: TrainConfig) -> None:
        super().__init__(model, processor, config)
        self.weights = {"answers": 1.0}
        weights = config.playground
        if weights.name_weight:
            self.weights |= dict.fromkeys(("patch_names", "region_names"), weights.name_weight)
        if weights.look_weight:
            self.weights |= {f"{kind}_looks": weights.look_weight for kind in LOOKING_LAYERS}
        values = {token: int(text) for text, token in processor.tokenizer.get_vocab().items() if text.isdecimal()}
        numbers = torch.tensor([values.get(token, -1) for token in range(model.config.text_config.vocab_size)])
        self.register_buffer("numbers", numbers, persistent=False)
        self._projected: dict[tuple[int, str], Tensor] = {}
        for layer in LOOKING_LAYERS.values() if weights.look_weight else ():
            attention = cast(nn.ModuleList, model.model.language_model.layers)[layer].self_attn
            for name in ("q_proj", "k_proj"):
                getattr(attention, name).register_forward_hook(
                    lambda _module, _inputs, output, key=(layer, name): self._projected.__setitem__(key, output)
                )

    def dataset(self, split: Split) -> Dataset:
        """Conversations of `config.playground.turns` questions."""
        return ConversationDataset(split, self.processor, self.config)

    def collate(self, samples: list[PlaygroundSample]) -> Batch:
        """A packed batch; `looks` holds, for each sample, where it begins and ends and what should look where."""
        batch = pack(samples)
        starts = batch["cu_seq_lens"].tolist()
        return batch | {
            "patch_names": torch.stack([s.patch_names for s in samples]),
            "region_names": torch.cat([s.region_names for s in samples]),
            "looks": [(starts[i], starts[i + 1], s.looks) for i, s in enumerate(samples)],
        }

    def counts(self, batch: Batch) -> dict[str, int]:
        counts = super().counts(batch)
        for name in ("patch_names", "region_names"):
            counts[name] = int((batch[name] != IGNORE_INDEX).sum())
        for kind in LOOKING_LAYERS:
            counts[f"{kind}_looks"] = LOOKING_HEADS * sum(len(looks[kind].tokens) for *_, looks in batch["looks"])
        return {name: counts[name] for name in self.weights}

    def terms(self, batch: Batch) -> tuple[dict[str, Tensor], Means]:
        hidden, image_features, region_features = self.hidden(batch)
        terms, means, (targets, predictions) = self.answers(hidden, batch["labels"])
        if "patch_names" in self.weights:
            projected = self.model.model.multi_modal_projector(image_features)
            for name, features in (("patch_names", projected), ("region_names", region_features)):
                terms[name], right = self._naming(features, batch[name])
                means[f"{name}_accuracy"] = mean_of(right)
        for kind in LOOKING_LAYERS if self.config.playground.look_weight else ():
            terms[f"{kind}_looks"], share = self._look(kind, batch)
            means[f"{kind}_share"] = mean_of(share)
        numbers = cast(Tensor, self.numbers)
        expected, given = numbers[targets], numbers[predictions]
        is_number = expected >= 0
        means["words"] = mean_of((targets == predictions)[~is_number])
        means["number_error"] = mean_of((expected - given)[is_number].abs())
        return terms, means

    def _naming(self, features: Tensor, names: Tensor) -> tuple[Tensor, Tensor]:
        """The summed cross-entropy of the names `(...)` that the head reads from features `(..., D)`, and which are right."""
        shown = names != IGNORE_INDEX
        logits = self.model.lm_head(self.model.model.language_model.norm(features[shown])).float()
        return F.cross_entropy(logits, names[shown], reduction="sum"), logits.argmax(-1) == names[shown]

    def _look(self, kind: str, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed -log of the share of attention that falls on the right tokens, and that share, for each look and head."""
        layer, decoder = LOOKING_LAYERS[kind], self.model.model.language_model
        width = decoder.config.head_dim
        query, key = (
            self._projected[layer, name].unflatten(-1, (-1, width))[:, :, :LOOKING_HEADS].float()
            for name in ("q_proj", "k_proj")
        )
        cos, sin = decoder.rotary_emb(query, batch["position_ids"])
        query, key = apply_rotary_pos_emb(query, key, cos, sin, unsqueeze_dim=2)
        losses, shares = [query.sum() * 0], [query.new_zeros(0)]
        for start, end, looks in batch["looks"]:
            tokens, targets = looks[kind].tokens.to(query.device), looks[kind].targets.to(query.device)
            if not len(tokens):
                continue
            scores = torch.einsum("khd,lhd->khl", query[0, start + tokens], key[0, start:end]) / math.sqrt(width)
            scores = scores.masked_fill(torch.arange(end - start, device=tokens.device) > tokens[:, None, None], -math.inf)
            share = scores.masked_fill(~targets[:, None], -math.inf).logsumexp(-1) - scores.logsumexp(-1)
            losses.append(-share.clamp(max=math.log(_LOOKING_ENOUGH)).sum())
            shares.append(share.detach().exp().flatten())
        return torch.stack(losses).sum(), torch.cat(shares)


class DenseDataset(Dataset[dict[str, Tensor]]):
    """Playground scenes with, for every patch, the thing under its centre and that thing's box."""

    def __init__(self, split: Split, processor: FerretProcessor) -> None:
        self.split, self.processor = split, processor

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        scene = generate_scene(scene_rng(self.split, index), WORLDS[self.split])
        instances = _instances_at(_patch_centers(self.processor), scene)
        kinds = torch.tensor([0, *(1 + _THING_INDEX[o.thing.name] for o in scene.objects)])
        boxes = torch.tensor([(0, 0, 0, 0), *(to_bins(o.box.coordinates(scene.size), scene.size) for o in scene.objects)])
        return {
            "pixel_values": self.processor.pixel_values([scene.image])[0],
            "kinds": kinds[instances],  # 0 for background
            "boxes": boxes[instances],  # in text bins
        }


class DenseTask(Task):
    """What is under every patch, and its box."""

    weights = {"presence": 1.0, "names": 1.0, "numbers": 1.0}  # noqa: RUF012
    _outputs = (1, len(THINGS), 4 * CODE_WIDTH)

    def __init__(self, model: FerretForConditionalGeneration, processor: FerretProcessor, config: TrainConfig) -> None:
        super().__init__(model, processor, config)
        width = model.config.vision_config.hidden_size
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(self._outputs)))
        self.register_buffer("code", number_code(), persistent=False)

    def dataset(self, split: Split) -> Dataset:
        """Scenes with dense labels."""
        return DenseDataset(split, self.processor)

    def collate(self, samples: list) -> Batch:
        return default_collate(samples)

    def counts(self, batch: Batch) -> dict[str, int]:
        shown = int((batch["kinds"] > 0).sum())
        return {"presence": batch["kinds"].numel(), "names": shown, "numbers": 4 * shown}

    def terms(self, batch: Batch) -> tuple[dict[str, Tensor], Means]:
        features = self.model.model.encode_images(batch["pixel_values"].to(self.model.dtype))
        thing, names, numbers = self.head(features).float().split(self._outputs, dim=-1)
        shown = batch["kinds"] > 0
        names, kinds, boxes = names[shown], batch["kinds"][shown] - 1, batch["boxes"][shown]
        numbers = numbers[shown].unflatten(-1, (4, CODE_WIDTH)) @ self.code.T
        terms = {
            "presence": F.binary_cross_entropy_with_logits(thing[..., 0], shown.float(), reduction="sum"),
            "names": F.cross_entropy(names, kinds, reduction="sum"),
            "numbers": F.cross_entropy(numbers.flatten(0, 1), boxes.flatten(), reduction="sum"),
        }
        return terms, {
            "names_accuracy": mean_of(names.argmax(-1) == kinds),
            "presence_accuracy": mean_of((thing[..., 0] > 0) == shown),
            "number_error": mean_of((numbers.argmax(-1) - boxes).abs()),
        }
