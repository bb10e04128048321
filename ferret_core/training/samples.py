"""Conversations to training samples: token ids, labels on the answers, pixels and region points."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ferret_core.data.playground import THINGS, Example, generate_scene, playground_example, scene_rng
from ferret_core.geometry import to_bins
from ferret_core.model.modeling import IGNORE_INDEX
from ferret_core.model.processor import FerretProcessor
from ferret_core.prompt import END_OF_ANSWER, IMAGE_TOKEN, Turn, build_prompt, write_boxes

_ANSWER = re.compile(rf" ASSISTANT:(.*?{re.escape(END_OF_ANSWER)})", re.DOTALL)
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
        head = torch.tensor(processor.encode_text(before + IMAGE_TOKEN))
        tail = processor.tokenizer(after, return_offsets_mapping=True)
        if len(head) + len(tail.input_ids) - 1 <= max_length:
            break
        turns.pop()
        if not turns:
            raise ValueError(f"record {record.id}: its first turn is longer than max_length = {max_length}")
    ids = torch.tensor(tail.input_ids[1:])  # without its BOS
    labels = torch.full_like(ids, IGNORE_INDEX)
    offsets = torch.tensor(tail.offset_mapping[1:])
    for answer in _ANSWER.finditer(after):
        inside = (offsets[:, 0] >= answer.start(1)) & (offsets[:, 1] <= answer.end(1))
        labels[inside] = ids[inside]
    points = [processor.encode_region(region, record.size, generator) for region in regions]
    return Sample(
        input_ids=torch.cat((head, ids)),
        labels=torch.cat((torch.full_like(head, IGNORE_INDEX), labels)),
        pixel_values=processor.encode_images([example.image])[0],
        region_points=torch.stack(points) if points else torch.zeros(0, processor.sampler_points, 2),
    )


def collate(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Samples as one batch, padded on the right: causal attention never looks there, so it needs no mask."""
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad([s.input_ids for s in samples], batch_first=True),
        "labels": pad([s.labels for s in samples], batch_first=True, padding_value=IGNORE_INDEX),
        "pixel_values": torch.stack([s.pixel_values for s in samples]),
        "region_points": torch.cat([s.region_points for s in samples]),
    }


class InstructionDataset(Dataset[Sample]):
    """Playground conversations, made on the fly; sample i is a function of (split, i)."""

    def __init__(
        self, split: str, processor: FerretProcessor, turns: int, max_length: int, first: int = 0, length: int = 2**31
    ) -> None:
        self.split, self.processor, self.turns, self.max_length = split, processor, turns, max_length
        self.first, self.length = first, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Sample:
        index = self.first + i
        example = playground_example(self.split, index, self.turns)
        return build_sample(example, self.processor, self.max_length, torch.Generator().manual_seed(index))


class DenseDataset(Dataset[dict[str, Tensor]]):
    """Playground scenes with, for every patch, the thing under its centre and that thing's box."""

    def __init__(self, split: str, processor: FerretProcessor, first: int = 0, length: int = 2**31) -> None:
        self.split, self.processor, self.first, self.length = split, processor, first, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        scene = generate_scene(scene_rng(self.split, self.first + i))
        side = int(self.processor.num_patches**0.5)
        centers = (torch.arange(side) + 0.5) / side
        rows, columns = (centers * scene.size.height).long(), (centers * scene.size.width).long()
        instances = torch.from_numpy(scene.instances)[rows[:, None], columns].flatten().long()
        kinds = torch.tensor([0, *(1 + _THING_INDEX[o.thing.name] for o in scene.objects)])
        boxes = torch.tensor([(0, 0, 0, 0), *(to_bins(o.box.coordinates(scene.size), scene.size) for o in scene.objects)])
        return {
            "pixel_values": self.processor.encode_images([scene.image])[0],
            "kinds": kinds[instances],  # 0 for background
            "boxes": boxes[instances],  # in text bins
        }
