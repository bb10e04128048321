"""Conversations to training samples: token ids, labels on the answers, pixels and region points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from ferret_core.data.playground import THINGS, Example, Scene, Split, generate_scene, playground_example, scene_rng
from ferret_core.geometry import to_bins
from ferret_core.model.modeling import IGNORE_INDEX
from ferret_core.model.processor import FerretProcessor
from ferret_core.prompt import IMAGE_TOKEN, Turn, answer_ranges, build_prompt, write_boxes

_THING_INDEX = {thing.name: i for i, thing in enumerate(THINGS)}


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation, ready to be batched."""

    input_ids: Tensor
    """int64 `(L,)`, expanded."""
    labels: Tensor
    """int64 `(L,)`: the answers and their `</s>`, -100 elsewhere."""
    pixel_values: Tensor
    """float32 `(3, S, S)`."""
    region_points: Tensor
    """float32 `(R, P, 2)`."""
    patch_names: Tensor
    """int64 `(N,)`: for each patch, the first token of the name of what is under its centre; -100 for background."""
    region_names: Tensor
    """int64 `(R,)`: for each region, the first token of the name of the thing under most of its points; -100 for none."""


def build_sample(
    example: Example, processor: FerretProcessor, max_length: int, generator: torch.Generator | None = None
) -> Sample:
    """The training sample of a record and its image, with as many of its turns as fit.

    Raises `ValueError` if not even the first turn does: nothing is cut in the middle, least of all the image.
    """
    record = example.record
    turns = [Turn(t.question, write_boxes(t.answer or "", record.boxes, record.size)) for t in record.turns]
    while True:
        prompt, regions = build_prompt(turns, dict(enumerate(record.regions)), record.size)
        before, after = prompt.split(IMAGE_TOKEN)
        head = torch.tensor(processor.token_ids(before + IMAGE_TOKEN))
        tail = processor.tokenizer(after, return_offsets_mapping=True)
        if len(head) + len(tail.input_ids) - 1 <= max_length:
            break
        turns.pop()
        if not turns:
            raise ValueError(f"record {record.id}: its first turn is longer than max_length = {max_length}")
    ids = torch.tensor(tail.input_ids[1:])  # without its BOS
    labels = torch.full_like(ids, IGNORE_INDEX)
    offsets = torch.tensor(tail.offset_mapping[1:])
    for start, end in answer_ranges(after):
        inside = (offsets[:, 0] >= start) & (offsets[:, 1] <= end)
        labels[inside] = ids[inside]
    points = [processor.region_points(region, record.size, generator) for region in regions]
    region_points = torch.stack(points) if points else torch.zeros(0, processor.sampler_points, 2)

    scene = example.scene
    names = torch.tensor([IGNORE_INDEX, *(processor.tokenizer(f" {o.thing.name}").input_ids[1] for o in scene.objects)])
    counts = F.one_hot(_instances_at(region_points, scene), len(names)).sum(1)
    counts[:, 0] = 0  # a box covers background as well
    return Sample(
        input_ids=torch.cat((head, ids)),
        labels=torch.cat((torch.full_like(head, IGNORE_INDEX), labels)),
        pixel_values=processor.pixel_values([example.image])[0],
        region_points=region_points,
        patch_names=names[_instances_at(_patch_centers(processor), scene)],
        region_names=names[counts.argmax(-1)],
    )


def _patch_centers(processor: FerretProcessor) -> Tensor:
    """Float32 `(N, 2)`: x / width and y / height of the centre of each patch, row-major."""
    side = math.isqrt(processor.num_patches)
    rows, columns = torch.meshgrid(*2 * [(torch.arange(side) + 0.5) / side], indexing="ij")
    return torch.stack((columns, rows), dim=-1).flatten(0, 1)


def _instances_at(points: Tensor, scene: Scene) -> Tensor:
    """What is at points `(..., 2)` in [0, 1): int64 `(...)`, i + 1 for object i, 0 for background and for NaN."""
    x, y = (points.nan_to_num() * torch.tensor(scene.size)).long().unbind(-1)
    return torch.from_numpy(scene.instances)[y, x].long() * ~points.isnan().any(-1)


def collate(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Samples as one batch, padded on the right: causal attention never looks there, so it needs no mask."""
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad([s.input_ids for s in samples], batch_first=True),
        "labels": pad([s.labels for s in samples], batch_first=True, padding_value=IGNORE_INDEX),
        "pixel_values": torch.stack([s.pixel_values for s in samples]),
        "region_points": torch.cat([s.region_points for s in samples]),
        "region_image": torch.arange(len(samples)).repeat_interleave(torch.tensor([len(s.region_points) for s in samples])),
        "patch_names": torch.stack([s.patch_names for s in samples]),
        "region_names": torch.cat([s.region_names for s in samples]),
    }


class InstructionDataset(Dataset[Sample]):
    """Playground conversations, made on the fly, without end: a sample is a function of (split, scene)."""

    def __init__(self, split: Split, processor: FerretProcessor, turns: int, max_length: int) -> None:
        self.split, self.processor, self.turns, self.max_length = split, processor, turns, max_length

    def __getitem__(self, scene: int) -> Sample:
        example = playground_example(self.split, scene, self.turns)
        return build_sample(example, self.processor, self.max_length, torch.Generator().manual_seed(scene))


class DenseDataset(Dataset[dict[str, Tensor]]):
    """Playground scenes with, for every patch, the thing under its centre and that thing's box."""

    def __init__(self, split: Split, processor: FerretProcessor) -> None:
        self.split, self.processor = split, processor

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        scene = generate_scene(scene_rng(self.split, index))
        instances = _instances_at(_patch_centers(self.processor), scene)
        kinds = torch.tensor([0, *(1 + _THING_INDEX[o.thing.name] for o in scene.objects)])
        boxes = torch.tensor([(0, 0, 0, 0), *(to_bins(o.box.coordinates(scene.size), scene.size) for o in scene.objects)])
        return {
            "pixel_values": self.processor.pixel_values([scene.image])[0],
            "kinds": kinds[instances],  # 0 for background
            "boxes": boxes[instances],  # in text bins
        }
