"""The conversations that one browser tab has open."""

from __future__ import annotations

from dataclasses import dataclass

from ui.chat import Chat


@dataclass
class Session:
    """What one browser tab has open."""

    chats: list[Chat]
    current: int = 0
    uploads: int = 0
    """Each upload empties the uploader by giving it another key."""
    editing: bool = False
    """Whether the last question is being edited."""
    notice: str = ""
    """Something to be said once."""

    @property
    def chat(self) -> Chat:
        """The conversation on the page."""
        return self.chats[self.current]

    def open(self, chat: Chat) -> None:
        """Shows a conversation; the one before stays open unless nothing has happened in it."""
        if self.chat.untouched:
            del self.chats[self.current]
        self.chats.append(chat)
        self.show(len(self.chats) - 1)

    def new(self) -> None:
        """Opens another conversation about the same picture."""
        self.open(Chat(self.chat.picture))

    def show(self, number: int) -> None:
        """Shows one of the open conversations."""
        self.current, self.editing = number, False
        self.chat.show_again()
