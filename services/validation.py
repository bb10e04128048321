"""What the settings allow a request to hold besides its picture.

Whatever is wrong is an `InvalidRequestError` that names the field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ferret.v1 import ferret_pb2 as pb
from ferret.v1 import regions_pb2

from ferret_core.geometry import Region
from services.errors import InvalidRequestError
from services.settings import PlatformSettings
from services.wire import RATINGS_FROM_PROTO, region_from_proto


def checked_regions(messages: Mapping[int, regions_pb2.Region], settings: PlatformSettings) -> dict[int, Region]:
    """The regions of a request, by the N of their `[regionN]`."""
    if len(messages) > settings.max_regions:
        raise InvalidRequestError(f"regions: at most {settings.max_regions} in all, got {len(messages)}")
    regions = {}
    for number, message in messages.items():
        try:
            regions[number] = region_from_proto(message)
        except ValueError as error:
            raise InvalidRequestError(f"regions[{number}]: {error}") from error
    return regions


def check_length(field: str, turns: Sequence[pb.Turn], settings: PlatformSettings, question: str = "") -> None:
    """Refuses too many turns, or too many characters of them and a question; `field` is where the turns are from."""
    if len(turns) > settings.max_turns:
        raise InvalidRequestError(f"{field}: at most {settings.max_turns:,} turns, got {len(turns):,}")
    length = len(question) + sum(len(turn.question) + len(turn.answer) for turn in turns)
    if length > settings.max_text_length:
        raise InvalidRequestError(f"{field}: at most {settings.max_text_length:,} characters with the question, got {length:,}")


def check_rating(request: pb.RateAnswerRequest, settings: PlatformSettings) -> None:
    """Refuses ratings that nobody knows, and comments that are too long."""
    if request.rating not in RATINGS_FROM_PROTO:
        raise InvalidRequestError(f"rating: must be unspecified, up or down; got {request.rating}")
    if len(request.comment) > settings.max_comment_length:
        raise InvalidRequestError(f"comment: at most {settings.max_comment_length:,} characters, got {len(request.comment):,}")
