"""What is written down of conversations for whoever improves the model, ratings and answers: an object of a line of JSON each.

    date=2026-11-23/CONVERSATION-RANDOM.jsonl

An object for each, because those in a bucket cannot be appended to; the date as most readers of partitioned data expect it:
`duckdb -c "from read_json('feedback/*/*.jsonl', hive_partitioning = true)"`. Lines outlive their conversation, unless that is
deleted.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from ferret.v1 import ferret_pb2 as pb

from ferret_core.data.records import region_to_json
from ferret_core.prompt import mentioned_regions
from services.stores.objects import ObjectStore
from services.wire import REASONS_FROM_PROTO, region_from_proto


class DailyLog:
    """Lines in a directory or a bucket, by day (UTC)."""

    def __init__(self, objects: ObjectStore) -> None:
        self.objects = objects

    def append(self, conversation_id: str, entry: dict[str, Any]) -> None:
        """Writes down a line, its conversation and its time."""
        now = datetime.now(UTC)
        line = {"time": now.isoformat(timespec="milliseconds"), "conversation": conversation_id, **entry}
        name = f"date={now:%Y-%m-%d}/{conversation_id}-{secrets.token_hex(8)}.jsonl"
        self.objects.add(name, (json.dumps(line, ensure_ascii=False) + "\n").encode())

    def lines(self, conversation_id: str) -> list[str]:
        """All that was written down of a conversation, oldest first."""
        lines = (self.objects.get(name) for name in self._names(conversation_id))
        return sorted(line.decode().rstrip("\n") for line in lines if line)  # each begins with its time

    def remove(self, conversation_id: str) -> bool:
        """Removes that. Returns whether there was anything."""
        names = list(self._names(conversation_id))
        for name in names:
            self.objects.remove(name)
        return bool(names)

    def _names(self, conversation_id: str) -> Iterator[str]:
        """As many lists as there are days with lines, however many lines there are."""
        for day in self.objects.names():
            yield from self.objects.names(f"{day}{conversation_id}-")


def turn_entry(conversation: pb.Conversation, position: int) -> dict[str, Any]:
    """What is written down of a turn: the question, what it points at, and the answer."""
    turn = conversation.turns[position]
    regions = {number: conversation.regions[number] for number in sorted({*mentioned_regions(turn.question)})}
    return {
        "turn": position,
        "turn_id": turn.id,
        "image_id": conversation.image.id,
        "model": turn.model,
        "question": turn.question,
        "regions": {number: region_to_json(region_from_proto(region)) for number, region in regions.items()},
        "answer": turn.answer,
        "finish_reason": REASONS_FROM_PROTO.get(turn.finish_reason),
    }
