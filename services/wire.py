"""Messages that clients meet, to and from the types of `ferret_core`. Needs no torch; `stage_wire` has the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ferret.v1 import ferret_pb2, regions_pb2, sampling_pb2

from ferret_core.answer import AnswerEvent, Finish, FinishReason, TextDelta, Usage
from ferret_core.geometry import BRUSH_WIDTH, Box, ImageSize, Mask, Point, Polygon, Region, RegionError, Scribble
from ferret_core.grounding import Span
from ferret_core.prompt import Turn
from services.conversation import Conversation, ConversationTurn, Rating

REASONS_TO_PROTO: dict[FinishReason, sampling_pb2.FinishReason] = {
    "stop": sampling_pb2.FINISH_REASON_STOP,
    "length": sampling_pb2.FINISH_REASON_LENGTH,
}
REASONS_FROM_PROTO = {value: name for name, value in REASONS_TO_PROTO.items()}

RATINGS_TO_PROTO: dict[Rating | None, ferret_pb2.Rating] = {
    None: ferret_pb2.RATING_UNSPECIFIED,
    "up": ferret_pb2.RATING_UP,
    "down": ferret_pb2.RATING_DOWN,
}
RATINGS_FROM_PROTO = {value: name for name, value in RATINGS_TO_PROTO.items()}


def region_to_proto(region: Region) -> regions_pb2.Region:
    """A region as its message."""
    match region:
        case Point(x, y):
            return regions_pb2.Region(point=regions_pb2.Point(x=x, y=y))
        case Box():
            return regions_pb2.Region(box=_box_to_proto(region))
        case Polygon(points):
            return regions_pb2.Region(polygon=regions_pb2.Polygon(points=_points_to_proto(points)))
        case Scribble(points, width):
            return regions_pb2.Region(scribble=regions_pb2.Scribble(points=_points_to_proto(points), width=width))
        case Mask(size, counts):
            return regions_pb2.Region(mask=regions_pb2.Mask(width=size.width, height=size.height, counts=counts))


def region_from_proto(message: regions_pb2.Region) -> Region:
    """Inverse of `region_to_proto`. Raises `RegionError` if no shape is set."""
    match message.WhichOneof("shape"):
        case "point":
            return Point(message.point.x, message.point.y)
        case "box":
            return _box_from_proto(message.box)
        case "polygon":
            return Polygon(tuple((p.x, p.y) for p in message.polygon.points))
        case "scribble":
            return Scribble(tuple((p.x, p.y) for p in message.scribble.points), message.scribble.width or BRUSH_WIDTH)
        case "mask":
            return Mask(ImageSize(message.mask.width, message.mask.height), message.mask.counts)
    raise RegionError("shape: one of point, box, polygon, scribble or mask must be set")


def sampling_to_proto(**settings: Any) -> sampling_pb2.Sampling:
    """Settings of `SamplingParams`; those not given stay unset, so that the server's defaults hold."""
    return sampling_pb2.Sampling(**settings)


def span_to_proto(span: Span) -> ferret_pb2.Span:
    """A phrase of an answer and its box."""
    return ferret_pb2.Span(
        phrase=span.phrase,
        box=_box_to_proto(span.box),
        start=span.start,
        end=span.end,
        box_start=span.box_start,
        box_end=span.box_end,
    )


def span_from_proto(message: ferret_pb2.Span) -> Span:
    """Inverse of `span_to_proto`."""
    return Span(
        phrase=message.phrase,
        box=_box_from_proto(message.box),
        start=message.start,
        end=message.end,
        box_start=message.box_start,
        box_end=message.box_end,
    )


def event_to_proto(event: AnswerEvent, image_id: str, model: str) -> ferret_pb2.ChatResponse:
    """One event of an answer; the finish also names the image and the model."""
    match event:
        case TextDelta(text):
            return ferret_pb2.ChatResponse(text_delta=ferret_pb2.TextDelta(text=text))
        case Span():
            return ferret_pb2.ChatResponse(span=span_to_proto(event))
        case Finish(reason, usage):
            finish = ferret_pb2.Finish(
                reason=REASONS_TO_PROTO[reason],
                usage=ferret_pb2.Usage(
                    prompt_tokens=usage.prompt_tokens,
                    completion_tokens=usage.completion_tokens,
                    dropped_turns=usage.dropped_turns,
                ),
                image_id=image_id,
                model=model,
            )
            return ferret_pb2.ChatResponse(finish=finish)


def event_from_proto(message: ferret_pb2.ChatResponse) -> AnswerEvent:
    """Inverse of `event_to_proto`. Raises `ValueError` for an event this version does not know."""
    match message.WhichOneof("event"):
        case "text_delta":
            return TextDelta(message.text_delta.text)
        case "span":
            return span_from_proto(message.span)
        case "finish":
            usage = message.finish.usage
            return Finish(
                REASONS_FROM_PROTO[message.finish.reason],
                Usage(
                    prompt_tokens=usage.prompt_tokens,
                    completion_tokens=usage.completion_tokens,
                    dropped_turns=usage.dropped_turns,
                ),
            )
    raise ValueError("the server sent an event that this client does not know; update the client")


def turn_to_proto(turn: Turn) -> ferret_pb2.Turn:
    """What a client says of an earlier turn: its question and its answer."""
    return ferret_pb2.Turn(question=turn.question, answer=turn.answer or "")


def turn_from_proto(message: ferret_pb2.Turn) -> Turn:
    """Inverse of `turn_to_proto`."""
    return Turn(message.question, message.answer)


def conversation_from_proto(message: ferret_pb2.Conversation) -> Conversation:
    """A conversation that the platform keeps."""
    return Conversation(
        id=message.id,
        image_id=message.image.id,
        size=image_size(message.image),
        regions={number: region_from_proto(region) for number, region in sorted(message.regions.items())},
        turns=tuple(
            ConversationTurn(
                turn.question,
                turn.answer,
                spans=tuple(map(span_from_proto, turn.spans)),
                finish_reason=REASONS_FROM_PROTO.get(turn.finish_reason),
                model=turn.model,
                rating=RATINGS_FROM_PROTO.get(turn.rating),
                comment=turn.comment,
            )
            for turn in message.turns
        ),
    )


def image_size(image: ferret_pb2.ImageInfo) -> ImageSize:
    """Size of an image in pixels."""
    return ImageSize(image.width, image.height)


def _box_to_proto(box: Box) -> regions_pb2.Box:
    return regions_pb2.Box(x1=box.x1, y1=box.y1, x2=box.x2, y2=box.y2)


def _box_from_proto(message: regions_pb2.Box) -> Box:
    return Box(message.x1, message.y1, message.x2, message.y2)


def _points_to_proto(points: Iterable[tuple[float, float]]) -> list[regions_pb2.Point]:
    return [regions_pb2.Point(x=x, y=y) for x, y in points]
