"""Conversations by id. Whoever knows an id may read and change the conversation, so ids cannot be guessed."""

from __future__ import annotations

import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

from ferret.v1 import ferret_pb2 as pb

from services.errors import NotFoundError
from services.stores.directory import Directory

Result = TypeVar("Result")


class ConversationStore(ABC):
    """Conversations that any replica can go on with, until nobody used them for long.

    Methods raise `NotFoundError` if a conversation is not, or no longer, here, and `UnavailableError` if that cannot be found
    out.
    """

    def create(self, conversation: pb.Conversation) -> None:
        """Stores a new conversation, and sets its id."""
        conversation.id = secrets.token_hex(16)
        self._add(conversation)

    @abstractmethod
    def _add(self, conversation: pb.Conversation) -> None:
        """Stores a new conversation."""

    @abstractmethod
    def get(self, conversation_id: str) -> pb.Conversation:
        """The conversation with an id."""

    @abstractmethod
    def update(self, conversation_id: str, change: Callable[[pb.Conversation], Result]) -> Result:
        """Changes the conversation with an id, and returns what `change` does.

        No other change comes between; should one, `change` is called again on the outcome of that. It asks no other store.
        If it raises, nothing is written.
        """

    @abstractmethod
    def remove(self, conversation_id: str) -> None:
        """Removes the conversation with an id, if there is one."""

    @abstractmethod
    def uses(self, image_id: str, besides: str) -> bool:
        """Whether any conversation is about an image, besides the one with the id `besides`."""


class DirectoryConversations(ConversationStore):
    """Conversations in a directory, a file each, for the replicas of one machine."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory

    def _add(self, conversation: pb.Conversation) -> None:
        self.directory.add(conversation.id, conversation.SerializeToString())

    def get(self, conversation_id: str) -> pb.Conversation:
        check_id(conversation_id)
        data = self.directory.get(conversation_id)
        if data is None:
            raise not_found(conversation_id)
        return pb.Conversation.FromString(data)

    def update(self, conversation_id: str, change: Callable[[pb.Conversation], Result]) -> Result:
        check_id(conversation_id)
        with self.directory.locked(conversation_id) as data:
            if data is None:
                raise not_found(conversation_id)
            conversation = pb.Conversation.FromString(data)
            result = change(conversation)
            self.directory.replace(conversation_id, conversation.SerializeToString())
            return result

    def remove(self, conversation_id: str) -> None:
        check_id(conversation_id)
        with self.directory.locked(conversation_id):
            self.directory.remove(conversation_id)

    def uses(self, image_id: str, besides: str) -> bool:
        """By reading them all: nobody asks often, and nothing need be kept in step."""
        conversations = map(pb.Conversation.FromString, self.directory.contents())
        return any(each.image.id == image_id and each.id != besides for each in conversations)


def check_id(conversation_id: str) -> None:
    """Only hexadecimal digits reach a store, whatever a client sent. Raises `NotFoundError`."""
    if not re.fullmatch("[0-9a-f]{32}", conversation_id):
        raise not_found(conversation_id)


def not_found(conversation_id: str) -> NotFoundError:
    """The error of a conversation that is not here."""
    return NotFoundError(f"conversation_id: no conversation {conversation_id!r}; create a new one")
