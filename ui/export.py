"""A conversation as files to keep: the picture with all that was drawn on it, and everything as JSON."""

from __future__ import annotations

import io
import json
from dataclasses import asdict

from ferret_core.images import open_image
from ferret_core.overlay import draw_overlay
from ui.chat import Chat
from ui.regions import regions_to_json


def annotated_png(chat: Chat) -> bytes:
    """The picture with its regions and the boxes of the last answer."""
    spans = chat.turns[-1].spans if chat.turns else []
    buffer = io.BytesIO()
    draw_overlay(open_image(chat.picture.data), spans, chat.regions).save(buffer, "PNG")
    return buffer.getvalue()


def conversation_json(chat: Chat) -> str:
    """Everything but the picture, which goes by its hash, and masks. Coordinates are pixels of the picture."""
    turns = [
        {
            "question": turn.question,
            "answer": turn.answer,
            "spans": [asdict(span) for span in turn.spans],
            "state": turn.state,
            "model": turn.model,
            "rating": turn.rating,
            "comment": turn.comment,
        }
        for turn in chat.turns
    ]
    content = {
        "id": chat.id,
        "image": {"id": chat.picture.id, "name": chat.picture.name, **chat.picture.size._asdict()},
        "regions": regions_to_json(chat.known_regions),
        "turns": turns,
    }
    return json.dumps(content, indent=2, ensure_ascii=False)
