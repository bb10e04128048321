"""Questions: found good before any model sees them and, in a conversation, kept with what there is of their answers."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ferret.v1 import ferret_pb2 as pb

from ferret_core.conversation import PreparedQuestion, prepare_question
from ferret_core.geometry import Region
from ferret_core.prompt import Turn, check_turns, mentioned_regions
from services.errors import InvalidRequestError, NotFoundError, UnavailableError
from services.model import Model
from services.pictures import Pictures
from services.settings import PlatformSettings
from services.stage_wire import sampling_from_proto
from services.stores import Stores
from services.stores.daily_log import turn_entry
from services.validation import check_length, checked_regions
from services.wire import image_size, turn_from_proto

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class Question:
    """A question that was found good."""

    data: bytes
    """The encoded image."""
    image: pb.ImageInfo
    """Its id and size."""
    prepared: PreparedQuestion
    """What the model reads."""
    turn_id: str = ""
    """Of the turn that keeps the answer; empty outside conversations."""
    before: pb.Conversation | None = None
    """The conversation without the question."""
    after: pb.Conversation | None = None
    """And with it."""


class Questions:
    """Asked alone or in a conversation."""

    def __init__(self, stores: Stores, pictures: Pictures, settings: PlatformSettings) -> None:
        self.stores, self.conversations, self.pictures, self.settings = stores, stores.conversations, pictures, settings

    async def ask(self, request: pb.ChatRequest, model: Model, retried: bool) -> Question:
        """Checks a question; in a conversation, keeps it, once even if the client tries again.

        Raises `ValueError` naming the field, and `NotFoundError`.
        """
        if request.conversation_id:
            return await asyncio.to_thread(self._ask_in_conversation, request, model, retried)
        return await self._ask_alone(request, model)

    async def keep(self, conversation_id: str, turn: pb.Turn) -> None:
        """Stores what there is of an answer, unless its turn was replaced meanwhile. Cancellation does not stop it."""

        def keep_in(conversation: pb.Conversation) -> dict[str, Any] | None:
            for position, kept in enumerate(conversation.turns):
                if kept.id == turn.id:
                    kept.MergeFrom(turn)
                    return turn_entry(conversation, position)
            return None

        def keep() -> None:
            with suppress(NotFoundError):  # deleted meanwhile
                entry = self.conversations.update(conversation_id, keep_in)
                if entry and turn.finish_reason and self.settings.stores.log_conversations:
                    try:
                        self.stores.write_down(self.stores.answers, conversation_id, entry)
                    except UnavailableError as error:  # the answer is worth more
                        logger.warning("an answer was not written down: %s", error)

        if turn.id:
            await asyncio.shield(asyncio.to_thread(keep))

    async def take_back(self, conversation_id: str, question: Question) -> None:
        """Leaves a conversation as it was before a question that came to nothing, unless it has gone on meanwhile."""
        before = question.before

        def take_back_in(conversation: pb.Conversation) -> None:
            if before and conversation == question.after:
                conversation.CopyFrom(before)

        if before:
            with suppress(NotFoundError):  # deleted meanwhile
                await asyncio.shield(asyncio.to_thread(self.conversations.update, conversation_id, take_back_in))

    async def _ask_alone(self, request: pb.ChatRequest, model: Model) -> Question:
        if request.HasField("turn"):
            raise InvalidRequestError("turn: only with conversation_id")
        check_length("history", request.history, self.settings, request.question)
        regions, history = await asyncio.to_thread(self._check, request)  # before a picture is fetched and decoded for nothing
        data, image = await self.pictures.of(request)
        prepared = await asyncio.to_thread(self._prepare, request, model, image, regions, history)
        await asyncio.to_thread(self.stores.images.put, data)
        return Question(data, image, prepared)

    def _check(self, request: pb.ChatRequest) -> tuple[dict[int, Region], list[Turn]]:
        """All that needs no picture. Returns the regions and the history."""
        sampling_from_proto(request.sampling)
        regions = checked_regions(request.regions, self.settings)
        history = [turn_from_proto(turn) for turn in request.history]
        check_turns([*history, Turn(request.question)], regions)
        return regions, history

    def _ask_in_conversation(self, request: pb.ChatRequest, model: Model, retried: bool) -> Question:
        for field, _ in request.ListFields():
            if field.name in ("image_bytes", "image_id", "image_url", "history"):
                raise InvalidRequestError(f"{field.name}: not with conversation_id; a conversation has its own")

        data = self.pictures.read(self.conversations.get(request.conversation_id).image.id)

        def ask_in(conversation: pb.Conversation) -> Question:
            before = pb.Conversation()
            before.CopyFrom(conversation)
            count = len(conversation.turns)
            again = retried and _is_unanswered(conversation.turns, request.question)
            position = request.turn if request.HasField("turn") else count - again
            if position > count:
                raise InvalidRequestError(f"turn: must be at most {count}, the number of turns; got {position}")
            del conversation.turns[position:]
            if len({*conversation.regions, *request.regions}) > self.settings.max_regions:
                _forget_unmentioned(conversation, request.question)
            for number, region in request.regions.items():
                conversation.regions[number].CopyFrom(region)
            check_length("conversation_id", conversation.turns, self.settings, request.question)
            regions = checked_regions(conversation.regions, self.settings)
            history = [turn_from_proto(turn) for turn in conversation.turns if turn.answer]
            prepared = self._prepare(request, model, conversation.image, regions, history)
            turn = conversation.turns.add(id=secrets.token_hex(16), question=request.question, model=model.name)
            return Question(data, conversation.image, prepared, turn.id, before, conversation)

        # Nobody else changes the conversation meanwhile: what the model reads is what is kept.
        return self.conversations.update(request.conversation_id, ask_in)

    def _prepare(
        self,
        request: pb.ChatRequest,
        model: Model,
        image: pb.ImageInfo,
        regions: Mapping[int, Region],
        history: Sequence[Turn],
    ) -> PreparedQuestion:
        return prepare_question(
            request.question,
            regions,
            history,
            processor=model.processor,
            context_length=model.context_length,
            size=image_size(image),
            max_new_tokens=sampling_from_proto(request.sampling).max_new_tokens,
        )


def add_to_turn(turn: pb.Turn, response: pb.ChatResponse) -> None:
    """Another piece of its answer."""
    match response.WhichOneof("event"):
        case "text_delta":
            turn.answer += response.text_delta.text
        case "span":
            turn.spans.append(response.span)
        case "finish":
            turn.finish_reason = response.finish.reason


def _forget_unmentioned(conversation: pb.Conversation, question: str) -> None:
    """Makes room for other regions: goes what neither a turn nor the question mentions."""
    texts = [question, *(text for turn in conversation.turns for text in (turn.question, turn.answer))]
    for number in set(conversation.regions) - {number for text in texts for number in mentioned_regions(text)}:
        del conversation.regions[number]


def _is_unanswered(turns: Sequence[pb.Turn], question: str) -> bool:
    """Whether the last turn asks this, and its answer did not come to an end."""
    return bool(turns) and turns[-1].question == question and not turns[-1].finish_reason
