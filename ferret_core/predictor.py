"""Asking a Ferret in this process: `set_image()` once, `ask()` many times.

predictor = FerretPredictor.from_pretrained("playground")
predictor.set_image("scene.png")
answer = predictor.ask("What is [region0]?", regions=[Point(120, 80)])
answer.text, answer.spans[0].phrase, answer.spans[0].box
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ferret_core.answer import Answer, AnswerEvent
from ferret_core.checkpoint.bundled import DEFAULT, checkpoint_path
from ferret_core.conversation import AnswerStream, PreparedQuestion, prepare_question
from ferret_core.engine import Engine, EngineSettings, Prompt, SamplingParams, ferret_prompt
from ferret_core.geometry import ImageSize
from ferret_core.images import ImageSource, open_image
from ferret_core.model import FerretForConditionalGeneration, FerretProcessor, default_device, default_dtype
from ferret_core.prompt import Regions, Turn


class FerretPredictor:
    """A model, its processor, and the image being asked about."""

    def __init__(self, model: FerretForConditionalGeneration, processor: FerretProcessor) -> None:
        self.model, self.processor = model.eval(), processor
        self._size: ImageSize | None = None
        self._features: Tensor | None = None

    @cached_property
    def engine(self) -> Engine:
        """Decodes; what it knows of earlier questions makes later ones quicker."""
        settings = EngineSettings(cache_tokens=2 * self.model.config.context_length)
        return Engine.for_model(self.model, self.processor.tokenizer, settings)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str = DEFAULT,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> FerretPredictor:
        """Loads a bundled checkpoint by name, a directory (ours or the original layout), or a name on the hub (ours).

        Args:
            name_or_path: which checkpoint.
            device: a CUDA GPU if there is one, else the CPU, by default.
            dtype: that of `default_dtype`, by default.
            kwargs: passed to the model's `from_pretrained`, as `attn_implementation="flash_attention_2"`.
        """
        path = checkpoint_path(name_or_path)
        device = torch.device(device or default_device())
        model = FerretForConditionalGeneration.from_pretrained(path, dtype=dtype or default_dtype(device.type, path), **kwargs)
        return cls(model.to(device), FerretProcessor.from_pretrained(path))

    def set_image(self, image: ImageSource) -> ImageSize:
        """Looks at an image: a path, encoded bytes or a PIL image. Returns its size. Raises `ImageError`."""
        self._features = self._size = None  # a failure must not leave the picture before
        picture = open_image(image)
        self._features = self.encode_image(picture)
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
        prepared = self.prepare(question, regions, history, self._size, params.max_new_tokens)
        # Bound now: the stream goes on about this image even if another one is set meanwhile.
        stream = AnswerStream(prepared, self._size)
        deltas = self.engine.stream(self.prompt(prepared, self._features, self._size), params)
        return (event for delta in deltas for event in stream.feed(delta))

    def prepare(
        self, question: str, regions: Regions, history: Sequence[Turn], size: ImageSize, max_new_tokens: int
    ) -> PreparedQuestion:
        """As `prepare_question`, for this model."""
        return prepare_question(
            question,
            regions,
            history,
            processor=self.processor,
            context_length=self.model.config.context_length,
            size=size,
            max_new_tokens=max_new_tokens,
        )

    def prompt(self, question: PreparedQuestion, features: Tensor, size: ImageSize) -> Prompt:
        """What the engine goes on from.

        Args:
            question: about one image.
            features: `(1, N, d)`, the image's.
            size: the image's, in pixels.
        """
        embedded = None
        if question.regions:
            with torch.inference_mode():
                points = [self.processor.region_points(region, size)[None] for region in question.regions]
                # Each alone: together they would be rounded otherwise.
                embedded = torch.cat([self.model.model.encode_regions(features, each.to(features.device)) for each in points])
        return ferret_prompt(self.model, question.input_ids, features, embedded)

    @torch.inference_mode()
    def encode_image(self, picture: Image.Image) -> Tensor:
        """Features `(1, N, d)` of a picture."""
        pixels = self.processor.pixel_values([picture]).to(self.model.device, self.model.dtype)
        return self.model.model.encode_images(pixels)
