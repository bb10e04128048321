"""The components written for this page, as Python sees them. Their TypeScript is in `frontend/`, built into `static/`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import streamlit as st
from streamlit.components.v2.get_bidi_component_manager import get_bidi_component_manager
from streamlit.components.v2.manifest_scanner import ComponentConfig, ComponentManifest

from ferret_core.geometry import Region
from ferret_core.grounding import Span
from ferret_core.overlay import PALETTE, phrase_colors, region_color
from ui.pictures import Picture
from ui.regions import to_canvas

_REGION = re.compile(r"(\[region(\d+)\])")
_UNFINISHED_BOX = re.compile(r" ?\[[\d, ]*$")


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
    data = picture.digest.encode() + picture.data
    _component("picture")(data=data, key=f"picture-{picture.digest}", height=1)


def canvas(
    picture: Picture, regions: Mapping[int, Region], *, revision: int, first_number: int, limit: int, key: str
) -> dict[str, Any] | None:
    """The picture with its regions.

    Args:
        picture: sent by `picture_bytes`.
        regions: to start with, or to replace what is drawn when `revision` is higher than before.
        revision: of `regions`.
        first_number: what the next region is called.
        limit: most regions.
        key: of the widget.

    Returns:
        What is drawn: `picture`, `revision`, `regions`, `next`, as the browser sends it. None before anything was.
    """
    data = {
        "picture": picture.digest,
        "size": picture.size._asdict(),
        "revision": revision,
        "regions": to_canvas(regions),
        "next": first_number,
        "palette": PALETTE,
        "limit": limit,
    }
    mount = _component("canvas", html='<div class="canvas"></div>', css="canvas.css")
    return mount(key=key, data=data, default={"drawing": None}, on_drawing_change=lambda: None).drawing


def message(text: str, spans: Sequence[Span] = (), *, key: str, raw: str | None = None) -> None:
    """Words with chips for regions and phrases; the boxes appear on the canvas. `key` must sort by age."""
    data = {"id": key, "parts": message_parts(text, spans)}
    if raw is not None:
        data["raw"] = raw
    _component("message", html='<div class="message"></div>', css="message.css")(data=data, key=key)


def message_parts(text: str, spans: Sequence[Span] = ()) -> list[dict[str, Any]]:
    """A text cut up: plain words, `[regionN]`, and grounded phrases with their boxes instead of the boxes' numbers."""
    colors = phrase_colors(spans)
    parts: list[dict[str, Any]] = []
    chip: dict[str, Any] = {}
    before: Span | None = None
    for span in spans:
        if before and (before.start, before.end) == (span.start, span.end):  # another box of the same phrase
            chip["boxes"].append(_corners(span))
        else:
            chip = {"text": span.phrase, "color": colors[span.phrase], "boxes": [_corners(span)]}
            parts += [*_words(text[before.box_end if before else 0 : span.start]), chip]
            parts += _words(text[span.end : span.box_start].rstrip())
        before = span
    return parts + _words(_UNFINISHED_BOX.sub("", text[before.box_end if before else 0 :]))


def _words(text: str) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    position = 0
    for match in _REGION.finditer(text):
        number = int(match[2])
        parts += [{"text": text[position : match.start()]}, {"text": match[1], "region": number, "color": region_color(number)}]
        position = match.end()
    return [part for part in [*parts, {"text": text[position:]}] if part["text"]]


def _corners(span: Span) -> list[float]:
    return [span.box.x1, span.box.y1, span.box.x2, span.box.y2]
