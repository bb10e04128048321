"""Greedy answers to many questions about few pictures, as quick as the engine makes them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image

from ferret_core.engine import Delta, Engine, EngineSettings, SamplingParams
from ferret_core.geometry import ImageSize, Region
from ferret_core.predictor import FerretPredictor


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question about one of several pictures."""

    image: int
    """Which picture."""
    text: str
    """Points at regions with `[region0]`, `[region1]`, ..."""
    regions: Mapping[int, Region] = field(default_factory=dict)
    """By number, in pixels of the picture."""


def answer_all(
    predictor: FerretPredictor,
    images: Sequence[Image.Image],
    questions: Sequence[Question],
    batch_size: int = 32,
    max_new_tokens: int = 160,
) -> list[str | None]:
    """The answers, in the order of the questions; those of `FerretPredictor.ask`.

    Questions about the same picture should be neighbours: what they have in common is read once. None answers a question
    that cannot be asked, as one that is too long; why is logged.
    """
    context = predictor.model.config.context_length
    settings = EngineSettings(
        cache_tokens=max(context, batch_size * context // 4),
        max_running=batch_size,
        step_tokens=max(512, batch_size),
        max_waiting=max(1, len(questions)),
    )
    engine = Engine.for_model(predictor.model, predictor.processor.tokenizer, settings)
    params = SamplingParams(max_new_tokens=max_new_tokens)
    features = [predictor.encode_image(image) for image in images]
    received: list[list[Delta | Exception]] = [[] for _ in questions]
    for question, deltas in zip(questions, received, strict=True):
        size = ImageSize(*images[question.image].size)
        try:
            prepared = predictor.prepare(question.text, question.regions, (), size, max_new_tokens)
        except ValueError as error:
            logging.warning("cannot be asked: %s: %s", question.text, error)
            continue
        engine.submit(predictor.prompt(prepared, features[question.image], size), params, deltas.append)
    engine.drain()
    return ["".join(map(_text, deltas)) if deltas else None for deltas in received]


def _text(delta: Delta | Exception) -> str:
    """Raises what ended an answer."""
    if isinstance(delta, Exception):
        raise delta
    return delta.text
