"""Records to look at: one HTML page with every turn of their conversations, and what each points at and locates drawn on
the picture.

What is coloured alike belongs together: a phrase and its boxes, a `[regionN]` and its shape.
"""

from __future__ import annotations

import base64
import io
import random
import re
from collections.abc import Iterable, Iterator
from html import escape
from itertools import islice

from PIL import Image

from ferret_core.data.checks import find_faults
from ferret_core.data.files import RecordFile
from ferret_core.data.images import Images
from ferret_core.data.page import page
from ferret_core.data.records import Object, Record
from ferret_core.geometry import Region
from ferret_core.grounding import Span, find_spans
from ferret_core.overlay import draw_overlay, phrase_colors, region_color
from ferret_core.prompt import REGION_MENTION, Turn, mentioned_regions, write_boxes

_SIDE = 480  # of a picture on the page, in pixels
_STYLE = """
article { margin-bottom: 1rem }
article header { display: flex; flex-wrap: wrap; gap: .25rem .75rem; align-items: baseline; margin-bottom: .75rem }
.turns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 1.5rem }
.turn { display: flex; flex-wrap: wrap; gap: .75rem 1.5rem; align-content: flex-start }
.turn img { max-width: 100%; height: auto; align-self: flex-start; border-radius: 8px }
.turn div { flex: 1 1 15rem }
article p { margin: .25rem 0; padding: .5rem .75rem; border-radius: 10px; overflow-wrap: anywhere }
p.question { background: var(--back); width: fit-content }
p.wrong { background: #c0262d; color: #fff; margin-bottom: 1rem }
p small { font-variant-numeric: tabular-nums }
mark { color: inherit; background: color-mix(in srgb, var(--color) 22%, transparent); border-bottom: 2px solid var(--color);
       padding: 0 .15em; border-radius: 3px }
mark.region { background: var(--color); color: #fff; border: 0; padding: .05em .4em; font-size: .85em }
"""


def sample_records(records: RecordFile, count: int, seed: int = 0, dataset: str = "") -> Iterator[Record | ValueError]:
    """At most `count` records of a file at random, the same for the same seed; one that cannot be read is its error.

    With `dataset`, only records of that one.
    """
    order = random.Random(seed).sample(range(len(records)), len(records))
    return islice(_of_dataset(records, order, dataset), count)


def preview_html(records: Iterable[Record | ValueError], images: Images, title: str, note: str = "") -> str:
    """The page. What is wrong with a record or its picture stands in its place."""
    return page(title, note, "\n".join(_article(record, images) for record in records), _STYLE)


def _of_dataset(records: RecordFile, order: Iterable[int], dataset: str) -> Iterator[Record | ValueError]:
    for index in order:
        try:
            record = records[index]
        except ValueError as error:
            if not dataset:
                yield error
            continue
        if not dataset or record.dataset == dataset:
            yield record


def _article(record: Record | ValueError, images: Images) -> str:
    if isinstance(record, ValueError):
        return f'<article class="card"><p class="wrong">{escape(str(record))}</p></article>'
    wrong = [detail for _, detail in find_faults(record)]
    sound, image = not wrong, None
    try:
        image = images.open(record) if record.image else None
    except ValueError as error:
        wrong.append(str(error))
    # What does not fit cannot be drawn: an unsound record is shown as it stands.
    turns = (_turn(turn, record if sound else None, image, first=i == 0) for i, turn in enumerate(record.turns))
    facts = (record.dataset, record.split, record.license, str(record.size), record.image)
    header = f"<b>{escape(record.id)}</b>" + "".join(f"<small>{escape(fact)}</small>" for fact in facts if fact)
    faults = "".join(f'<p class="wrong">{escape(line)}</p>' for line in wrong)
    return f'<article class="card"><header>{header}</header>{faults}<div class="turns">{"".join(turns)}</div></article>'


def _turn(turn: Turn, record: Record | None, image: Image.Image | None, first: bool) -> str:
    """A turn; beside it, if it is the first or points at or locates something, the picture."""
    texts = [turn.question, turn.answer or ""]
    spans: list[list[Span]] = [[], []]
    regions: dict[int, Region] = {}
    if record and record.image:
        texts = [write_boxes(text, record.boxes, record.size) for text in texts]
        spans = [find_spans(text, record.size) for text in texts]
        regions = {number: _shape(record.regions[number]) for text in texts for number in mentioned_regions(text)}
    together = spans[0] + spans[1]
    picture = embedded_picture(draw_overlay(image, together, regions)) if image and (first or together or regions) else ""
    colors = phrase_colors(together)
    question, answer = (_colored(text, some, colors) for text, some in zip(texts, spans, strict=True))
    return f'<div class="turn">{picture}<div><p class="question">{question}</p><p class="answer">{answer}</p></div></div>'


def _shape(region: Region | Object) -> Region:
    return (region.mask or region.box) if isinstance(region, Object) else region


def embedded_picture(image: Image.Image) -> str:
    """The picture in the page itself, scaled."""
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img width="{image.width}" height="{image.height}" alt="" src="data:image/webp;base64,{data}">'


def _colored(text: str, spans: list[Span], colors: dict[str, str]) -> str:
    """A text as HTML: phrases and regions in their colours, boxes small."""
    pieces, end = [], 0
    for span in spans:
        color = colors[span.phrase]
        if span.phrase and span.start >= end:
            pieces += [_plain(text[end : span.start]), f'<mark style="--color: {color}">{_plain(span.phrase)}</mark>']
            end = span.end
        box = f'<small style="color: {color}">{text[span.box_start : span.box_end]}</small>'
        pieces += [_plain(text[end : span.box_start]), box]
        end = span.box_end
    return "".join(pieces) + _plain(text[end:])


def _plain(text: str) -> str:
    return REGION_MENTION.sub(_region, escape(text)).replace("\n", "<br>")


def _region(mention: re.Match[str]) -> str:
    return f'<mark class="region" style="--color: {region_color(int(mention[1]))}">region{mention[1]}</mark>'
