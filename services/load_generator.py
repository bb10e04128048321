"""Load on a running platform; `load_report` says what its users then waited for.

Closed loop: so many users, each of whom asks again as soon as the answer is there; it finds the most that the platform can do.
Open loop: questions come at a rate, at random times (Poisson), whether or not the platform keeps up, and waiting is
counted from when a question was due: it shows what people would see.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from ferret_core.answer import Finish, TextDelta
from ferret_core.data.playground import playground_example
from ferret_core.images import ImageSource
from ferret_core.prompt import Regions
from services.client import AsyncFerretClient, ServerError

_PATIENCE = 0.2  # seconds after an error, before a user of the closed loop asks again


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about a picture."""

    image: ImageSource
    text: str
    regions: Regions = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How much is asked, and for how long. Raises `ValueError` naming the setting that is out of range."""

    users: int = 4
    """Of the closed loop."""
    rate: float = 0.0
    """Questions a second, for the open loop; 0 for the closed loop."""
    seconds: float = 30.0
    """Questions are begun for so long; those that are begun are waited for."""
    warmup: float = 3.0
    """Seconds before, which are not counted."""
    max_new_tokens: int = 64
    """Of each answer."""
    seed: int = 0
    """Of times and of the order of the questions."""
    in_order: bool = False
    """Ask the questions one after the other instead, and from the first again after the last."""

    def __post_init__(self) -> None:
        for name, least in (("users", 1), ("rate", 0), ("seconds", 0.1), ("warmup", 0), ("max_new_tokens", 1)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise ValueError(f"{name}: must be at least {least}, got {value}")


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of a question; times in seconds since the load began, warm-up included."""

    due: float
    """When it was asked, or should have been."""
    end: float = math.nan
    """When the answer, or the error, was there."""
    tokens: int = 0
    """Of the answer."""
    error: str = ""
    """gRPC's name of it; empty if there is an answer."""
    message: str = ""
    """What the platform says of the error."""
    events: list[float] = field(default_factory=list)
    """When each piece of text came."""

    @property
    def first(self) -> float:
        """When the first words came; NaN if none did."""
        return self.events[0] if self.events else math.nan


async def run(
    load: Load,
    questions: Sequence[Question],
    connect: Callable[[], AsyncFerretClient],
    told: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Puts a platform under load.

    Args:
        load: how much.
        questions: asked over and over, in random order unless `load.in_order`. Their pictures are uploaded before.
        connect: a new connection, for each picture.
        told: of each outcome as it comes.

    Raises:
        ServerError: the pictures could not be uploaded.
    """
    clients = [connect() for _ in questions]
    outcomes: list[Outcome] = []
    chance, asked = random.Random(load.seed), itertools.count()

    async def ask(due: float) -> Outcome:
        i = next(asked) % len(questions) if load.in_order else chance.randrange(len(questions))
        outcome = Outcome(due=due)
        try:
            stream = clients[i].stream(questions[i].text, questions[i].regions, max_new_tokens=load.max_new_tokens)
            async for event in stream:
                match event:  # spans and the end come with the last words
                    case TextDelta():
                        outcome.events.append(time.monotonic() - start)
                    case Finish():
                        outcome.tokens = event.usage.completion_tokens
        except ServerError as error:
            outcome.error, outcome.message = error.code.name, str(error)
        outcome.end = time.monotonic() - start
        outcomes.append(outcome)
        told(outcome)
        return outcome

    try:
        for client, question in zip(clients, questions, strict=True):
            await client.set_image(question.image)
        start = time.monotonic()
        await (_open if load.rate else _closed)(load, start, ask)
    finally:
        for client in clients:
            await client.close()
    return sorted(outcomes, key=lambda outcome: outcome.due)


async def _closed(load: Load, start: float, ask: Callable[[float], Awaitable[Outcome]]) -> None:
    async def user() -> None:
        while (now := time.monotonic() - start) < load.warmup + load.seconds:
            if (await ask(now)).error:
                await asyncio.sleep(_PATIENCE)

    await asyncio.gather(*(user() for _ in range(load.users)))


async def _open(load: Load, start: float, ask: Callable[[float], Coroutine[Any, Any, Outcome]]) -> None:
    chance = random.Random(load.seed)

    async def arrivals() -> AsyncIterator[float]:
        due = chance.expovariate(load.rate)
        while due < load.warmup + load.seconds:
            await asyncio.sleep(due - (time.monotonic() - start))
            yield due
            due += chance.expovariate(load.rate)

    async with asyncio.TaskGroup() as asked:
        async for due in arrivals():
            asked.create_task(ask(due))


def playground_questions(pictures: int) -> list[Question]:
    """One question about each of so many scenes of the playground, of several kinds."""
    questions = []
    for i in range(pictures):
        example = playground_example("test", i, 1)
        turn = example.record.turns[0]
        regions = {number: region for number, region in example.regions.items() if f"[region{number}]" in turn.question}
        questions.append(Question(example.image, turn.question, regions))
    return questions
