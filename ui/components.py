"""The components written for this page, as Python sees them. Their TypeScript is in `frontend/`, built into `static/`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple
from itertools import groupby
from pathlib import Path
from typing import Any

import streamlit as st
from streamlit.components.v2.get_bidi_component_manager import get_bidi_component_manager
from streamlit.components.v2.manifest_scanner import ComponentConfig, ComponentManifest

from ferret_core.grounding import Span
from ferret_core.overlay import PALETTE, phrase_colors, region_color
from ferret_core.prompt import REGION_MENTION
from ui.chat import Chat
from ui.pictures import Picture
from ui.regions import regions_from_json, regions_to_json


def register() -> None:
    """Makes the components known to Streamlit; once a run.

    Streamlit finds the assets of installed packages by itself only if they are named like their distribution.
    """
    manifest = ComponentManifest("ferret", "1", [ComponentConfig(name, "static") for name in ("canvas", "picture", "message")])
    get_bidi_component_manager().register_from_manifest(manifest, Path(__file__).parent)


def _component(name: str, html: str | None = None, css: str | None = None) -> Callable[..., Any]:
    return st.components.v2.component(f"ferret.{name}", html=html, css=css, js=f"{name}.js")


def picture_bytes(picture: Picture) -> None:
    """Sends a picture to the browser. Apart from what changes, so that it crosses the wire once."""
    data = picture.id.encode() + picture.data
    _component("picture")(data=data, key=f"picture-{picture.id}", height=1)  # it shows nothing, and takes no room


def canvas(chat: Chat, limit: int) -> None:
    """The picture of a conversation, sent by `picture_bytes`, with at most `limit` regions.

    The canvas takes the conversation's regions when its `revision` is another than before; after that it leads.
    """

    def take() -> None:  # before what else was clicked meanwhile has its effect
        drawing = st.session_state["canvas"]["drawing"]
        if drawing and (drawing.get("picture"), drawing.get("revision")) == (chat.picture.id, chat.revision):
            chat.draw(regions_from_json(drawing.get("regions"), chat.picture.size, limit))

    data = {
        "picture": chat.picture.id,
        "size": chat.picture.size._asdict(),
        "revision": chat.revision,
        "regions": regions_to_json(chat.regions),
        "next": chat.next_number,
        "palette": [region_color(number) for number in range(len(PALETTE))],
        "limit": limit,
    }
    mount = _component("canvas", html='<div class="canvas"></div>', css="canvas.css")
    mount(key="canvas", data=data, default={"drawing": None}, on_drawing_change=take)


def message(text: str, spans: Sequence[Span] = (), *, key: str, copy: str | None = None) -> None:
    """Words with chips for regions and phrases, whose boxes appear on the canvas.

    Args:
        text: words, and boxes as the model writes them.
        spans: of the text.
        key: ends in a number that grows from message to message: the newest one's boxes are shown.
        copy: what a button copies; no footer without.
    """
    data = {"id": key, "parts": message_parts(text, spans), "copy": copy}
    _component("message", html='<div class="message"></div>', css="message.css")(data=data, key=key)


def message_parts(text: str, spans: Sequence[Span] = ()) -> list[dict[str, Any]]:
    """A text cut up: plain words, `[regionN]`, and grounded phrases with their boxes instead of the boxes' numbers."""
    colors = phrase_colors(spans)
    parts: list[dict[str, Any]] = []
    read = 0
    for (start, end), group in groupby(spans, key=lambda span: (span.start, span.end)):
        same = list(group)  # boxes of one phrase
        phrase = same[0].phrase
        parts += _words(text[read:start])
        parts.append({"text": phrase, "color": colors[phrase], "boxes": [astuple(span.box) for span in same]})
        parts += _words(text[end : same[0].box_start].rstrip())
        read = same[-1].box_end
    return parts + _words(text[read:])


def _words(text: str) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    read = 0
    for match in REGION_MENTION.finditer(text):
        number = int(match[1])
        parts += [{"text": text[read : match.start()]}, {"text": match[0], "region": number, "color": region_color(number)}]
        read = match.end()
    return [part for part in [*parts, {"text": text[read:]}] if part["text"]]
