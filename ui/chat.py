"""Conversations of a browser session, without a line of Streamlit: what was drawn, what was asked, what is being answered.

An answer is received by a thread of its own, so that nothing the page does, and no rerun of its script, can disturb it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

from ferret_core.answer import AnswerEvent, Finish, FinishReason, TextDelta
from ferret_core.geometry import Region
from ferret_core.grounding import Span
from ferret_core.prompt import Turn as HistoryTurn
from services.client import FerretClient, NotFoundError, ServerError
from services.conversation import Conversation
from ui.pictures import Picture

Rating = Literal["up", "down"]
State = Literal["running", "finished", "stopped", "failed"]
_revisions = count()
_PRESENCE_SECONDS = 1.0  # how often it is checked whether anybody is still reading


@dataclass(slots=True)
class Turn:
    """A question and as much of its answer as has come."""

    question: str
    text: str = ""
    spans: list[Span] = field(default_factory=list)
    state: State = "running"
    error: str = ""
    finish_reason: FinishReason | None = None
    model: str = ""
    rating: Rating | None = None
    comment: str = ""
    started: float = field(default_factory=time.monotonic)
    seconds: float | None = None
    """What the answer took; None while it is running, or if it is from an earlier session."""

    @property
    def elapsed(self) -> float:
        """Seconds since it was asked."""
        return time.monotonic() - self.started


class Chat:
    """One conversation about one picture."""

    def __init__(self, picture: Picture) -> None:
        self.picture = picture
        self.regions: dict[int, Region] = {}
        """On the canvas."""
        self.revision = next(_revisions)
        """Changes whenever the canvas is to show other regions than were drawn on it."""
        self.first_number = 0
        """What the next region is called."""
        self.drawn_on = False
        """Whether the user has changed the regions."""
        self.turns: list[Turn] = []
        self.suggestions: list[str] = []
        """Questions that the picture lends itself to."""
        self.queue: list[str] = []
        """Questions sent while an answer was still on its way."""
        self.id: str | None = None
        """Of the conversation on the platform, once there is one."""
        self._asked: dict[int, Region] = {}  # also those that have been deleted since: earlier questions mention them
        self._stop = threading.Event()
        self._stream: Any = None

    @classmethod
    def restore(cls, conversation: Conversation, picture: Picture) -> Chat:
        """A conversation that the platform has kept."""
        chat = cls(picture)
        chat.id = conversation.id
        chat.show(conversation.regions)
        chat._asked = dict(conversation.regions)
        chat.turns = [
            Turn(
                question=turn.question,
                text=turn.answer,
                spans=list(turn.spans),
                state="finished" if turn.finish_reason else "stopped",
                finish_reason=turn.finish_reason,
                model=turn.model,
                rating=turn.rating,
                comment=turn.comment,
            )
            for turn in conversation.turns
        ]
        return chat

    @property
    def busy(self) -> bool:
        """Whether an answer is on its way."""
        return bool(self.turns) and self.turns[-1].state == "running"

    @property
    def untouched(self) -> bool:
        """Whether nothing would be missed."""
        return not self.turns and not self.drawn_on

    def show(self, regions: Mapping[int, Region]) -> None:
        """Puts regions on the canvas in place of those there."""
        self.regions = dict(regions)
        self.revision = next(_revisions)
        self.first_number = max(self.first_number, 1 + max(regions, default=-1))

    def draw(self, regions: Mapping[int, Region]) -> None:
        """Takes regions from the canvas."""
        self.drawn_on |= regions != self.regions
        self.regions = dict(regions)
        self.first_number = max(self.first_number, 1 + max(regions, default=-1))

    def ask(
        self,
        question: str,
        client: FerretClient,
        *,
        position: int | None = None,
        is_read: Callable[[], bool] = lambda: True,
        **sampling: Any,
    ) -> Turn:
        """Starts an answer.

        Args:
            question: mentions regions as `[region0]`, `[region1]`, ...
            client: of the model to ask; may be shared.
            position: of the turn to ask anew; it and those after it go. By default the question is a new one.
            is_read: whether somebody still waits for the answer; else it is stopped.
            sampling: settings of `SamplingParams`.
        """
        if self.busy:
            raise RuntimeError("an answer is still on its way")
        if position is None:
            position = len(self.turns)
            while position and not self.turns[position - 1].text:  # failed before the first word
                position -= 1
        turn = Turn(question, model=client.model)
        self.turns[position:] = [turn]
        self._asked |= self.regions
        self._stop.clear()
        arguments = (turn, position, client, dict(self._asked), sampling)
        threading.Thread(target=self._receive, args=arguments, daemon=True).start()
        threading.Thread(target=self._watch, args=(turn, is_read), daemon=True).start()
        return turn

    def rate(self, client: FerretClient, position: int, rating: Rating | None, comment: str) -> None:
        """Stores what somebody thinks of an answer. Raises `ServerError`."""
        turn = self.turns[position]
        turn.rating, turn.comment = rating, comment
        if self.id:
            client.rate_answer(self.id, position, rating, comment)

    def stop(self) -> None:
        """Ends the answer at once; what has come of it stays."""
        self._stop.set()
        if self._stream:
            self._stream.close()

    def _receive(
        self, turn: Turn, position: int, client: FerretClient, regions: dict[int, Region], sampling: dict[str, Any]
    ) -> None:
        state: State = "stopped"
        try:
            for event in self._events(turn.question, position, client, regions, sampling):
                match event:
                    case TextDelta(text):
                        turn.text += text
                    case Span():
                        turn.spans.append(event)
                    case Finish(reason):
                        turn.finish_reason, state = reason, "finished"
        except (ServerError, ValueError) as error:
            turn.error, state = str(error), "failed"
        except Exception as error:
            turn.error, state = f"the page has a defect: {type(error).__name__}: {error}", "failed"
            raise
        finally:
            turn.seconds = time.monotonic() - turn.started
            turn.state = state

    def _events(
        self, question: str, position: int, client: FerretClient, regions: dict[int, Region], sampling: dict[str, Any]
    ) -> Iterator[AnswerEvent]:
        known = self.id is not None
        while not self._stop.is_set():
            if not self.id:
                history = [HistoryTurn(turn.question, turn.text) for turn in self.turns[:position]]
                self.id = client.create_conversation(self.picture.data, regions, history).id
            self._stream = client.stream(question, regions, conversation=self.id, turn=position, **sampling)
            if self._stop.is_set():  # pressed in the meantime
                self._stream.close()
            try:
                yield from self._stream
                return
            except NotFoundError:  # the platform has lost its memory, but the page has not
                if not known:
                    raise
                self.id, known = None, False

    def _watch(self, turn: Turn, is_read: Callable[[], bool]) -> None:
        absent = 0
        while turn.state == "running" and not self._stop.wait(_PRESENCE_SECONDS):
            absent = 0 if is_read() else absent + 1
            if absent > 3:  # browsers lose their connection for a moment now and then
                self.stop()
