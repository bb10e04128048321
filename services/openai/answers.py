"""What OpenAI's clients are answered, made of what `FerretService` answers. Dictionaries, as JSON has them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import astuple
from typing import Literal, NotRequired, TypedDict

from ferret.v1 import ferret_pb2 as pb

from ferret_core.answer import Answer, Finish, FinishReason, TextDelta, Usage
from ferret_core.grounding import Span
from services.wire import event_from_proto


class Grounding(TypedDict):
    """A phrase of the answer and the place it names."""

    phrase: str
    """The words; empty if the box stands alone."""
    box: list[float]
    """x1, y1, x2, y2 in pixels of the image."""
    start: int
    """Of the phrase in the answer, in characters."""
    end: int
    box_start: int
    """Of the text of the box in the answer."""
    box_end: int


class CompletionUsage(TypedDict):
    """What an answer took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    dropped_turns: int
    """Oldest turns that did not fit the context and were left out."""


class ChatCompletionMessage(TypedDict):
    """A whole answer."""

    role: Literal["assistant"]
    content: str
    refusal: None
    grounding: list[Grounding]


class Choice(TypedDict):
    """A whole answer and its end."""

    index: int
    message: ChatCompletionMessage
    logprobs: None
    finish_reason: FinishReason


class ChatCompletion(TypedDict):
    """What answers a request that does not stream."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: CompletionUsage
    image_id: str
    """Of the image, for the next question about it."""


class ChoiceDelta(TypedDict, total=False):
    """A piece of an answer."""

    role: Literal["assistant"]
    content: str
    grounding: list[Grounding]


class ChunkChoice(TypedDict):
    """A piece of an answer, or its end."""

    index: int
    delta: ChoiceDelta
    logprobs: None
    finish_reason: FinishReason | None


class ChatCompletionChunk(TypedDict):
    """One event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: NotRequired[CompletionUsage | None]
    image_id: NotRequired[str]


def completion_from_proto(responses: Sequence[pb.ChatResponse]) -> ChatCompletion:
    """A whole answer."""
    answer, finish = Answer.collect(map(event_from_proto, responses)), responses[-1].finish
    return {
        "id": _completion_id(),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": finish.model,
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": answer.text,
                    "refusal": None,
                    "grounding": [_grounding(span) for span in answer.spans],
                },
                "logprobs": None,
                "finish_reason": answer.finish_reason,
            }
        ],
        "usage": _usage(answer.usage),
        "image_id": finish.image_id,
    }


class ChunkStream:
    """An answer of a model as it comes."""

    def __init__(self, model: str, include_usage: bool) -> None:
        self.id, self.created = _completion_id(), int(time.time())
        self.model, self.include_usage = model, include_usage

    def begin(self) -> ChatCompletionChunk:
        """What comes before the first word."""
        return self._chunk({"role": "assistant", "content": ""})

    def feed(self, response: pb.ChatResponse) -> list[ChatCompletionChunk]:
        """The chunks that an event brings about."""
        match event_from_proto(response):
            case TextDelta(text):
                return [self._chunk({"content": text})]
            case Span() as span:
                return [self._chunk({"grounding": [_grounding(span)]})]
            case Finish(reason, usage):
                end = self._chunk({}, reason)
                end["image_id"] = response.finish.image_id
                return [end, end | {"choices": [], "usage": _usage(usage)}] if self.include_usage else [end]

    def _chunk(self, delta: ChoiceDelta, finish_reason: FinishReason | None = None) -> ChatCompletionChunk:
        chunk: ChatCompletionChunk = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}],
        }
        if self.include_usage:  # null until it is known
            chunk["usage"] = None
        return chunk


def _completion_id() -> str:
    return f"chatcmpl-{secrets.token_hex(16)}"


def _grounding(span: Span) -> Grounding:
    return {
        "phrase": span.phrase,
        "box": list(astuple(span.box)),
        "start": span.start,
        "end": span.end,
        "box_start": span.box_start,
        "box_end": span.box_end,
    }


def _usage(usage: Usage) -> CompletionUsage:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "dropped_turns": usage.dropped_turns,
    }


class Model(TypedDict):
    """Something that can be asked."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context_length: int
    """Most tokens of a prompt and its answer together."""


class ModelList(TypedDict):
    """The first is the default."""

    object: Literal["list"]
    data: list[Model]


def models_from_proto(response: pb.ListModelsResponse) -> ModelList:
    """All models that can be asked."""
    data: list[Model] = [
        {"id": model.name, "object": "model", "created": 0, "owned_by": "ferret", "context_length": model.context_length}
        for model in response.models
    ]
    return {"object": "list", "data": data}
