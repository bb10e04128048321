"""Conversations that the platform keeps, from their start to the day somebody has them removed."""

from __future__ import annotations

import base64
import secrets
from contextlib import suppress

from ferret.v1 import ferret_pb2 as pb

from ferret_core.conversation import check_regions
from ferret_core.grounding import find_spans
from ferret_core.prompt import check_text
from services.errors import InvalidRequestError, NotFoundError, UnavailableError
from services.export import archive
from services.settings import PlatformSettings
from services.stores import Stores
from services.stores.conversations import check_id
from services.stores.daily_log import turn_entry
from services.validation import check_length, check_rating, checked_regions
from services.wire import RATINGS_FROM_PROTO, image_size, span_to_proto


class KeptConversations:
    """What can be done with a conversation besides asking in it.

    Methods raise `InvalidRequestError` naming the field that is wrong, and `NotFoundError` for an id that is not, or no longer,
    known.
    """

    def __init__(self, stores: Stores, settings: PlatformSettings) -> None:
        self.stores, self.images, self.conversations = stores, stores.images, stores.conversations
        self.settings = settings

    def create(self, request: pb.CreateConversationRequest, data: bytes, image: pb.ImageInfo) -> pb.Conversation:
        """Starts one about a picture, with turns from elsewhere if there are any."""
        size = image_size(image)
        regions = checked_regions(request.regions, self.settings)
        check_regions(regions, size)
        check_length("turns", request.turns, self.settings)
        conversation = pb.Conversation(image=image, regions=request.regions)
        for i, turn in enumerate(request.turns):
            check_text(turn.question, regions, f"turns[{i}].question")
            check_text(turn.answer, regions, f"turns[{i}].answer")
            spans = map(span_to_proto, find_spans(turn.answer, size))
            conversation.turns.add(id=secrets.token_hex(16), question=turn.question, answer=turn.answer, spans=spans)
        self.images.put(data)
        self.conversations.create(conversation)
        self.images.put(data)  # again: somebody may have deleted the last conversation before this one that used it
        return conversation

    def get(self, conversation_id: str) -> pb.Conversation:
        """One as it stands."""
        return self.conversations.get(conversation_id)

    def rate(self, request: pb.RateAnswerRequest) -> None:
        """Puts a rating into the conversation and into the log."""
        check_rating(request, self.settings)

        def rate_in(conversation: pb.Conversation) -> tuple[pb.Conversation, pb.Turn]:
            if request.turn >= len(conversation.turns):
                raise InvalidRequestError(
                    f"turn: must be less than {len(conversation.turns)}, the number of turns; got {request.turn}"
                )
            turn = conversation.turns[request.turn]
            turn.rating, turn.comment = request.rating, request.comment
            return conversation, turn

        conversation, turn = self.conversations.update(request.conversation_id, rate_in)
        image = None
        if self.settings.stores.feedback_images:
            with suppress(UnavailableError):  # the rating is worth more
                image = self.images.get(conversation.image.id)
        entry = turn_entry(conversation, request.turn)
        entry |= {"rating": RATINGS_FROM_PROTO[turn.rating] or "withdrawn", "comment": turn.comment}
        entry |= {"image": base64.b64encode(image).decode()} if image else {}
        self.stores.write_down(self.stores.feedback, conversation.id, entry)

    def export(self, conversation_id: str) -> bytes:
        """All that is kept of it, as `archive` packs it."""
        conversation = self.conversations.get(conversation_id)
        logs = {"ratings.jsonl": self.stores.feedback, "answers.jsonl": self.stores.answers}
        lines = {name: log.lines(conversation_id) for name, log in logs.items()}
        return archive(conversation, self.images.get(conversation.image.id), lines)

    def delete(self, conversation_id: str) -> None:
        """Removes all that, and what is logged of one that is no longer here.

        The conversation goes last, so that who is told to try again can.
        """
        check_id(conversation_id)
        logged = self._remove_logs(conversation_id)
        try:
            conversation = self.conversations.get(conversation_id)
        except NotFoundError:
            if logged:
                return
            raise
        image_id = conversation.image.id
        if not self.conversations.uses(image_id, besides=conversation_id):
            data = self.images.get(image_id)
            self.images.remove(image_id)
            self.stores.cache.forget(image_id)
            if data and self.conversations.uses(image_id, besides=conversation_id):  # somebody has just started one
                self.images.put(data)
        self.conversations.remove(conversation_id)
        self._remove_logs(conversation_id)  # again: somebody may just have rated an answer

    def _remove_logs(self, conversation_id: str) -> bool:
        """Whether there was anything."""
        removed = [log.remove(conversation_id) for log in (self.stores.feedback, self.stores.answers)]
        return any(removed)
