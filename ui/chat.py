"""Conversations without a line of Streamlit: what was drawn, what was asked, what is being answered.

An answer is received by a thread of its own, so that nothing the page does, and no rerun of its script, can disturb it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

from ferret_core.answer import AnswerEvent, Finish, FinishReason, TextDelta
from ferret_core.geometry import Region
from ferret_core.grounding import Span
from ferret_core.prompt import Turn, mentioned_regions
from services.client import EventStream, FerretClient, NotFoundError, ServerError
from services.conversation import Conversation, Rating
from ui.pictures import Picture

State = Literal["running", "finished", "stopped", "failed"]

# Browsers lose their connection for a moment now and then: absence counts if it lasts this many looks.
_LOOK_SECONDS, _LOOKS = 1.0, 5
_turns, _revisions = count(), count()


@dataclass(slots=True)
class LiveTurn:
    """A question and as much of its answer as has come."""

    question: str
    answer: str = ""
    spans: tuple[Span, ...] = ()
    state: State = "running"
    error: str = ""
    finish_reason: FinishReason | None = None
    model: str = ""
    rating: Rating | None = None
    comment: str = ""
    started: float = field(default_factory=time.monotonic)
    number: int = field(default_factory=_turns.__next__)
    """Unlike any other's of this process; later turns have higher ones."""


@dataclass(eq=False)
class Chat:
    """One conversation about one picture."""

    picture: Picture
    regions: dict[int, Region] = field(default_factory=dict)
    """On the canvas, by the N of their `[regionN]`."""
    suggestions: Sequence[str] = ()
    """Questions that the picture lends itself to."""
    id: str | None = None
    """Of the conversation on the platform, once there is one."""
    turns: list[LiveTurn] = field(default_factory=list)
    queue: list[str] = field(default_factory=list)
    """Questions sent while an answer was still on its way."""
    drawn_on: bool = False
    """Whether the user has changed the regions."""
    revision: int = field(default_factory=_revisions.__next__)
    """Another one whenever the canvas is to show other regions than were drawn on it."""

    def __post_init__(self) -> None:
        self.next_number = 1 + max(self.regions, default=-1)
        """What the next region is called. No number is used twice: earlier questions mention it."""
        self._drawn = dict(self.regions)  # also those that have been deleted since
        self._stop = threading.Event()
        self._stream: EventStream | None = None

    @classmethod
    def restore(cls, conversation: Conversation, picture: Picture) -> Chat:
        """A conversation that the platform has kept."""
        turns = [
            LiveTurn(
                question=turn.question,
                answer=turn.answer,
                spans=turn.spans,
                state="finished" if turn.finish_reason or not turn.model else "stopped",  # no model: from elsewhere
                finish_reason=turn.finish_reason,
                model=turn.model,
                rating=turn.rating,
                comment=turn.comment,
            )
            for turn in conversation.turns
        ]
        return cls(picture, dict(conversation.regions), id=conversation.id, turns=turns)

    @property
    def known_regions(self) -> dict[int, Region]:
        """Those on the canvas, and those that were deleted after they had been mentioned."""
        mentioned = {number for turn in self.turns for number in mentioned_regions(turn.question + turn.answer)}
        return {number: region for number, region in self._drawn.items() if number in mentioned} | self.regions

    @property
    def busy(self) -> bool:
        """Whether an answer is on its way."""
        return bool(self.turns) and self.turns[-1].state == "running"

    @property
    def untouched(self) -> bool:
        """Whether nothing would be missed."""
        return not self.turns and not self.drawn_on

    def draw(self, regions: Mapping[int, Region]) -> None:
        """Takes regions from the canvas."""
        self.drawn_on |= regions != self.regions
        self.regions = dict(regions)
        self._drawn |= self.regions
        self.next_number = max(self.next_number, 1 + max(regions, default=-1))

    def show_again(self) -> None:
        """Makes the canvas take the regions anew: meanwhile it has shown another conversation's."""
        self.revision = next(_revisions)

    def ask(
        self,
        question: str,
        client: FerretClient,
        *,
        position: int | None = None,
        present: Callable[[], bool] = lambda: True,
        **sampling: Any,
    ) -> None:
        """Starts an answer.

        Args:
            question: mentions regions as `[region0]`, `[region1]`, ...
            client: of the model to ask; may be shared.
            position: of the turn to ask anew; it and those after it go. By default the question is a new one.
            present: whether somebody still waits for the answer; else it is stopped.
            sampling: settings of `SamplingParams`.

        Raises:
            RuntimeError: an answer is still on its way.
        """
        if self.busy:
            raise RuntimeError("an answer is still on its way")
        if position is None and self.turns and not self.turns[-1].answer:  # failed or stopped before the first word
            position = len(self.turns) - 1
        turn = LiveTurn(question, model=client.model)
        replaced = slice(len(self.turns) if position is None else position, None)
        self.turns[replaced] = [turn]
        self._stop = threading.Event()
        events = self._events(question, position, client, self.known_regions, sampling)
        threading.Thread(target=self._receive, args=(turn, events), daemon=True).start()
        threading.Thread(target=self._watch, args=(turn, present), daemon=True).start()

    def stop(self) -> None:
        """Ends the answer at once; what has come of it stays."""
        self._stop.set()
        self.queue.clear()
        if self.busy:
            self.turns[-1].state = "stopped"  # whatever the thread is still waiting for
        if self._stream:
            self._stream.close()

    def rate(self, client: FerretClient, position: int, rating: Rating | None, comment: str) -> None:
        """Stores what somebody thinks of an answer. Raises `ServerError`."""
        if not self.id:
            raise ValueError("an answer can be rated once it is kept")
        client.rate_answer(self.id, position, rating, comment)
        turn = self.turns[position]
        turn.rating, turn.comment = rating, comment

    def _receive(self, turn: LiveTurn, events: Iterator[AnswerEvent]) -> None:
        state: State = "stopped"
        try:
            for event in events:
                match event:
                    case TextDelta(text):
                        turn.answer += text
                    case Span():
                        turn.spans += (event,)
                    case Finish(reason):
                        turn.finish_reason, state = reason, "finished"
        except (ServerError, ValueError) as error:
            turn.error, state = str(error), "failed"
        except Exception as error:
            turn.error, state = f"the page has a defect: {type(error).__name__}: {error}", "failed"
            raise
        finally:
            if turn.state == "running":
                turn.state = state

    def _events(
        self, question: str, position: int | None, client: FerretClient, regions: dict[int, Region], sampling: dict[str, Any]
    ) -> Iterator[AnswerEvent]:
        stopped = self._stop
        known = self.id is not None
        while not stopped.is_set():
            if not self.id:
                history = [Turn(turn.question, turn.answer) for turn in self.turns[:-1]]
                self.id = client.create_conversation(self.picture.data, regions, history).id
            self._stream = client.stream(question, regions, conversation_id=self.id, turn=position, **sampling)
            if stopped.is_set():  # in the meantime
                self._stream.close()
            try:
                yield from self._stream
                return
            except NotFoundError as error:
                if not known or not str(error).startswith(("conversation_id", "image_id")):
                    raise
                # The platform has lost its memory, but the page has not.
                self.id, known = None, False

    def _watch(self, turn: LiveTurn, present: Callable[[], bool]) -> None:
        absent = 0
        while turn.state == "running" and not self._stop.wait(_LOOK_SECONDS):
            absent = 0 if present() else absent + 1
            if absent == _LOOKS:
                self.stop()
