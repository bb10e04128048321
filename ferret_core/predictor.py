"""Asking a Ferret, in this process: `set_image()` once, `ask()` many times.

    predictor = FerretPredictor.from_pretrained("playground")
    predictor.set_image("scene.png")
    answer = predictor.ask("What is [region0]?", regions=[Point(120, 80)])
    answer.text, answer.spans[0].phrase, answer.spans[0].box

`prepare` is the part of it that needs no weights; the serving gateway uses it as well, so that the same question makes the
same prompt everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ferret_core.answer import Answer, AnswerEvent, Finish, TextDelta, Usage
from ferret_core.checkpoint.bundled import resolve
from ferret_core.engine import Delta, SamplingParams, decode
from ferret_core.geometry import ImageSize, Region
from ferret_core.grounding import GroundingParser
from ferret_core.images import ImageSource, open_image
from ferret_core.model import FerretForConditionalGeneration, FerretProcessor
from ferret_core.prompt import PromptError, Turn, build_prompt, number_regions

Regions = Mapping[int, Region] | Sequence[Region]


@dataclass(frozen=True, slots=True)
class Question:
    """A question, ready for the model."""

    input_ids: tuple[int, ...]
    """Expanded: N tokens for the image, one per mentioned region."""
    regions: tuple[Region, ...]
    """One per `<region_fea>`, in order."""
    dropped_turns: int
    """Oldest turns that did not fit."""


def prepare(
    processor: FerretProcessor,
    context_length: int,
    size: ImageSize,
    question: str,
    regions: Regions = (),
    history: Sequence[Turn] = (),
    max_new_tokens: int = 256,
) -> Question:
    """Checks a question about an image of `size` pixels and turns it into token ids.

    Args:
        processor: of the model that will answer.
        context_length: most tokens of prompt and answer together.
        size: of the image.
        question: points at regions with `[region0]`, `[region1]`, ...
        regions: in image pixels; a sequence is numbered from 0.
        history: earlier turns, oldest first; dropped from the oldest on if they do not fit.
        max_new_tokens: room to leave for the answer.

    Raises:
        ValueError: with what to change (`PromptError`, `RegionError`).
    """
    numbered = number_regions(regions)
    for number, region in numbered.items():
        try:
            region.to_mask(size)
        except ValueError as error:
            raise type(error)(f"regions[{number}]: {error}") from error
    turns = [*history, Turn(question)]
    room = context_length - max_new_tokens
    for dropped in range(len(turns)):
        prompt, mentioned = build_prompt(turns[dropped:], numbered, size)
        ids = processor.encode_text(prompt)
        if len(ids) <= room:
            return Question(tuple(ids), tuple(mentioned), dropped)
    raise PromptError(
        f"question: {len(ids)} tokens with its image and regions, but the context of {context_length} leaves room for "
        f"{room} beside max_new_tokens = {max_new_tokens}; shorten the question or ask for fewer new tokens"
    )


class AnswerStream:
    """Turns a decoder's deltas into the events of an answer: each span as soon as its box closes, the end with its usage."""

    def __init__(self, question: Question, size: ImageSize) -> None:
        self.question = question
        self.parser = GroundingParser(size)

    def feed(self, delta: Delta) -> list[AnswerEvent]:
        """The events that a delta brings about."""
        events: list[AnswerEvent] = []
        if delta.text:
            events += [TextDelta(delta.text), *self.parser.feed(delta.text)]
        if delta.finish_reason:
            usage = Usage(
                prompt_tokens=len(self.question.input_ids),
                completion_tokens=delta.tokens,
                dropped_turns=self.question.dropped_turns,
            )
            events.append(Finish(delta.finish_reason, usage))
        return events


class FerretPredictor:
    """A model, its processor, and the image being asked about."""

    def __init__(self, model: FerretForConditionalGeneration, processor: FerretProcessor) -> None:
        self.model, self.processor = model.eval(), processor
        self._size: ImageSize | None = None
        self._features: Tensor | None = None

    @classmethod
    def from_pretrained(
        cls, name_or_path: str = "playground", device: str | None = None, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> FerretPredictor:
        """Loads a bundled checkpoint by name, a directory (ours or the original layout), or a name on the hub.

        Args:
            name_or_path: which checkpoint.
            device: a CUDA GPU if there is one, else the CPU, by default.
            dtype: bfloat16 on a GPU, float32 on a CPU, by default.
            kwargs: passed to the model's `from_pretrained`, as `attn_implementation="flash_attention_2"`.
        """
        path = resolve(name_or_path)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = dtype or (torch.float32 if device == "cpu" else torch.bfloat16)
        model = FerretForConditionalGeneration.from_pretrained(path, dtype=dtype, **kwargs)
        return cls(model.to(device), FerretProcessor.from_pretrained(path))

    @torch.inference_mode()
    def set_image(self, image: ImageSource) -> ImageSize:
        """Looks at an image: a path, encoded bytes or a PIL image. Returns its size. Raises `ImageError`."""
        picture: Image.Image = open_image(image)
        pixels = self.processor.encode_images([picture]).to(self.model.device, self.model.dtype)
        self._features = self.model.model.encode_images(pixels)
        self._size = ImageSize(*picture.size)
        return self._size

    def ask(self, question: str, regions: Regions = (), history: Sequence[Turn] = (), **sampling: Any) -> Answer:
        """The whole answer; arguments as for `stream`."""
        return Answer.collect(self.stream(question, regions, history, **sampling))

    def stream(
        self, question: str, regions: Regions = (), history: Sequence[Turn] = (), **sampling: Any
    ) -> Iterator[AnswerEvent]:
        """The answer as it comes.

        Args:
            question: points at regions with `[region0]`, `[region1]`, ...
            regions: in pixels of the image; a sequence is numbered from 0.
            history: earlier turns about the same image and regions, oldest first.
            sampling: of `SamplingParams`.

        Raises:
            ValueError: with what to change in the question, a region or a setting.
            RuntimeError: no image was set.
        """
        if self._features is None or self._size is None:
            raise RuntimeError("call set_image() before asking")
        params = SamplingParams(**sampling)
        prepared = prepare(
            self.processor, self.model.config.context_length, self._size, question, regions, history, params.max_new_tokens
        )
        # Bound now: the stream goes on about this image even if another one is set meanwhile.
        stream = AnswerStream(prepared, self._size)
        deltas = self._decode(prepared, params, self._features, self._size)
        return (event for delta in deltas for event in stream.feed(delta))

    def _decode(self, question: Question, params: SamplingParams, features: Tensor, size: ImageSize) -> Iterator[Delta]:
        model = self.model.model
        with torch.inference_mode():
            embedded = None
            if question.regions:
                points = [self.processor.encode_region(region, size) for region in question.regions]
                embedded = model.encode_regions(features, torch.stack(points).to(features.device))
            ids = torch.tensor([question.input_ids], device=features.device)
            embeddings = model.embed_prompt(ids, features, embedded)
        return decode(self.model, self.processor.tokenizer, embeddings, params)
