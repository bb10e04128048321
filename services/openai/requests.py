"""What `POST /v1/chat/completions` takes, and the `ChatRequest` that it means.

Whatever is wrong with it is a `ValueError` that names the field. What would change the answer and cannot be had is refused by
name; what has no bearing on it is ignored.
"""

from __future__ import annotations

import base64
import re
import reprlib
from collections.abc import Sequence
from itertools import count, groupby
from operator import itemgetter
from typing import Annotated, Any, Literal

from ferret.v1 import ferret_pb2 as pb
from ferret.v1 import regions_pb2
from pydantic import BaseModel, BeforeValidator, FailFast, Field, ValidationError, model_validator

from ferret_core.data.records import Object, region_from_json
from ferret_core.geometry import Region
from ferret_core.prompt import Turn, mentioned_regions
from services.wire import region_to_proto, sampling_to_proto, turn_to_proto

# What has no bearing on the answer ...
_IGNORED = {
    "metadata", "parallel_tool_calls", "prediction", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
    "safety_identifier", "service_tier", "store", "user",
}  # fmt: skip
# ... and what has none at these values. Null is as good as absent everywhere.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}

_MOST_PIECES = 1_000_000  # of JSON: 64 drawings of 4,096 points are fewer, and they take a second to read
_INLINE = re.compile(r"<(point|box|polygon|scribble)>([^<]*)</\1>")
_DATA_URL = re.compile(r"data:[^,]{0,200};base64,")


def _parts(content: Any) -> Any:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, list):
        return content
    raise ValueError("must be text or a list of parts")


def _texts(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


class ImageURL(BaseModel):
    """Where an image is: here in the URL itself, or kept by the platform under its id."""

    url: str


class Part(BaseModel):
    """A piece of a message."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageURL | None = None

    @model_validator(mode="after")
    def _complete(self) -> Part:
        if getattr(self, self.type) is None:
            raise ValueError(f"needs its {self.type}")
        return self


class Message(BaseModel):
    """What somebody said."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Part], FailFast(), BeforeValidator(_parts)]

    @property
    def text(self) -> str:
        """Its words, without the images."""
        return "\n".join(part.text or "" for part in self.content if part.type == "text")


class StreamOptions(BaseModel):
    """What to stream besides the answer."""

    include_usage: bool = False
    """A last chunk with the token counts."""


class ChatCompletionRequest(BaseModel):
    """The body of `POST /v1/chat/completions`. A field that is absent has the platform's default, not OpenAI's."""

    model: str = ""
    """The platform's first if empty."""
    messages: Annotated[list[Message], FailFast()]
    regions: dict[str, Any] | list[Any] = []
    """By the N of their `[regionN]`, each as in a record (`docs/data.md`); a list is numbered from 0."""
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    """The older name of `max_completion_tokens`."""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = Field(None, ge=0, lt=2**31)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: Annotated[list[str], FailFast(), BeforeValidator(_texts)] = []

    @model_validator(mode="before")
    @classmethod
    def _known(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            raise ValueError("body: must be a JSON object")
        kept = {}
        for name, value in body.items():
            if name in cls.model_fields and value is not None:
                kept[name] = value
            elif name not in cls.model_fields and name not in _IGNORED and value not in (None, *_NEUTRAL.get(name, ())):
                neutral = f" or set it to {_NEUTRAL[name][0]!r}" if name in _NEUTRAL else ""
                raise ValueError(f"{name[:80]}: is not supported; leave it out{neutral}")
        return kept


def parse_request(body: bytes) -> ChatCompletionRequest:
    """A request from its JSON. Raises `ValueError` naming the field that is missing or wrong."""
    if sum(map(body.count, (b",", b"[", b"{"))) > _MOST_PIECES:
        raise ValueError(f"body: at most {_MOST_PIECES:,} values are accepted; simplify the regions")
    try:
        return ChatCompletionRequest.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in found["loc"]).lstrip(".")
        reason = str(found["ctx"]["error"]) if found["type"] == "value_error" else found["msg"]
        if found["type"] == "json_invalid":
            place = "body"
        raise ValueError(f"{place}: {reason}" if place else reason) from None


def request_to_proto(request: ChatCompletionRequest) -> pb.ChatRequest:
    """The question that a request asks. Raises `ValueError` naming the field that is wrong."""
    items = request.regions.items() if isinstance(request.regions, dict) else enumerate(request.regions)
    regions = {_number(key): _region_to_proto(key, value) for key, value in items}
    *history, question = _turns(request.messages, _texts_with_regions(request.messages, regions))
    return pb.ChatRequest(
        model=request.model,
        regions=regions,
        history=map(turn_to_proto, history),
        question=question.question,
        sampling=sampling_to_proto(
            max_new_tokens=request.max_completion_tokens or request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            seed=request.seed,
            stop=request.stop,
        ),
        **_image(request.messages),
    )


def image_source(url: str) -> dict[str, Any]:
    """The field of a `ChatRequest` that a URL stands for. This is where it is decided which URLs are let in."""
    if url.startswith("sha256:"):
        return {"image_id": url}
    if header := _DATA_URL.match(url):
        try:
            return {"image_bytes": base64.b64decode(url[header.end() :], validate=True)}
        except ValueError:
            raise ValueError("the data is not base64") from None
    if url.startswith("https:"):
        return {"image_url": url}
    raise ValueError(
        "must be a data URL (data:image/png;base64,...), an id (sha256:...), or https://HOST/... where the platform allows it; "
        f"got {reprlib.repr(url)}"
    )


def _image(messages: Sequence[Message]) -> dict[str, Any]:
    """The one image that messages are about, however often they show it."""
    places: dict[str, str] = {}
    for i, message in enumerate(messages):
        for j, part in enumerate(message.content):
            if part.image_url and part.type == "image_url":
                if message.role != "user":
                    raise ValueError(f"messages[{i}].content[{j}]: an image must be in a message of the user")
                places.setdefault(part.image_url.url, f"messages[{i}].content[{j}].image_url.url")
    if not places:
        raise ValueError("messages: there is no image; send it with the question, in a part of type image_url")
    if len(places) > 1:
        raise ValueError(f"messages: a conversation is about one image, got {len(places)}; ask about each in its own")
    ((url, place),) = places.items()
    try:
        return image_source(url)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def _number(key: Any) -> int:
    if str(key).isdecimal() and len(str(key)) < 10:
        return int(key)
    raise ValueError(f"regions: {reprlib.repr(key)} is not the N of a [regionN]")


def _region_to_proto(key: Any, value: Any) -> regions_pb2.Region:
    try:
        return region_to_proto(_region(value))
    except ValueError as error:
        raise ValueError(f"regions[{key}]: {error}") from None


def _region(value: Any) -> Region:
    region = region_from_json(value)
    if isinstance(region, Object):
        raise ValueError("an object is for training; send its box or its mask")
    return region


def _texts_with_regions(messages: Sequence[Message], regions: dict[int, regions_pb2.Region]) -> list[str]:
    """The words of each message. What users draw within theirs is named there, and added to `regions`, under free numbers."""
    texts = [message.text for message in messages]
    taken = {*regions, *(number for text in texts for number in mentioned_regions(text))}
    free = (number for number in count() if number not in taken)
    drawn: dict[Region, int] = {}

    def name(match: re.Match[str]) -> str:
        region = _drawn(*match.groups())
        if region not in drawn:
            drawn[region] = next(free)
        return f"[region{drawn[region]}]"

    for i, message in enumerate(messages):
        if message.role == "user":
            try:
                texts[i] = _INLINE.sub(name, texts[i])
            except ValueError as error:
                raise ValueError(f"messages[{i}].content: {error}") from None
    regions.update((number, region_to_proto(region)) for region, number in drawn.items())
    return texts


def _drawn(kind: str, text: str) -> Region:
    """A region within text: `<box>X1,Y1,X2,Y2</box>`, and likewise `point`, `polygon` and `scribble`."""
    try:
        values = [float(number) for number in text.split(",")]
        return _region({kind: values if kind in ("point", "box") else list(zip(values[::2], values[1::2], strict=True))})
    except ValueError as error:
        raise ValueError(f"<{kind}>: {reprlib.repr(text)}: {error}") from None


def _turns(messages: Sequence[Message], texts: Sequence[str]) -> list[Turn]:
    """Questions and answers in turn; the last question has none. Neighbours of the same role are one."""
    spoken = []
    for i, (message, text) in enumerate(zip(messages, texts, strict=True)):
        if message.role in ("user", "assistant"):
            spoken.append((message.role, text))
        elif text.strip():
            raise ValueError(
                f"messages[{i}]: the model follows no {message.role} message; say in the question what it should do"
            )
    runs = [(role, "\n".join(text for _, text in run if text)) for role, run in groupby(spoken, itemgetter(0))]
    if not runs or runs[0][0] != "user" or runs[-1][0] != "user":
        raise ValueError("messages: the first and the last must be the user's")
    said = [text for _, text in runs]
    return [*map(Turn, said[:-1:2], said[1::2]), Turn(said[-1])]
