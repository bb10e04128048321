"""Answers to look at: one HTML page with the worst of a benchmark and random ones, boxes and regions drawn.

Red is what was expected; the answer's boxes and what was pointed at have other colours.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from ferret_core.data.page import page
from ferret_core.data.preview import embedded_picture
from ferret_core.evaluation.asking import Pictures
from ferret_core.evaluation.benchmark import Benchmark, Prediction
from ferret_core.grounding import Span, find_spans
from ferret_core.overlay import draw_overlay

SHOWN = 24
"""Of the worst, and at random, at most."""
_EXPECTED = "expected"  # drawn first, and so in the first colour
_STYLE = """
article { display: flex; flex-wrap: wrap; gap: .75rem 1.5rem }
article img { max-width: 100%; height: auto; align-self: flex-start; border-radius: 8px }
article div { flex: 1 1 12rem }
article p { margin: .25rem 0; overflow-wrap: anywhere }
.grid { grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); margin-bottom: 2rem }
"""


def gallery(benchmark: Benchmark, predictions: Sequence[Prediction], pictures: Pictures | None = None, seed: int = 0) -> str:
    """The page. What was expected and has a place is drawn under that name; without `pictures` there are only words."""
    shuffled = random.Random(seed).sample(sorted(predictions, key=lambda each: each.item.id), len(predictions))
    qualities = {each.item.id: benchmark.tally(each).get(benchmark.quality, 0.0) for each in shuffled}
    best = max(qualities.values(), default=0.0)
    worse = [each for each in shuffled if qualities[each.item.id] < best]
    worst = sorted(worse, key=lambda each: qualities[each.item.id])[:SHOWN]
    body = "".join(
        f'<h2>{escape(title)}</h2><div class="grid">{_articles(benchmark, chosen, pictures)}</div>'
        for title, chosen in (
            (f"Worst, by “{benchmark.quality}”" if worst else "None is worse than others", worst),
            ("At random", shuffled[:SHOWN]),
        )
    )
    return page(benchmark.name, benchmark.protocol, body, _STYLE)


def _articles(benchmark: Benchmark, predictions: Iterable[Prediction], pictures: Pictures | None) -> str:
    return "\n".join(_article(benchmark, prediction, pictures) for prediction in predictions)


def _article(benchmark: Benchmark, prediction: Prediction, pictures: Pictures | None) -> str:
    item, answer = prediction.item, prediction.answer
    drawn = _drawn(prediction, pictures) if pictures else ""
    tally = _listed({name: f"{value:.3g}" for name, value in benchmark.tally(prediction).items() if name != "items"})
    words = _listed({name: value for name, value in item.expected.items() if name != "boxes"})
    place = item.id if item.group in item.id else f"{item.group} · {item.id}"
    said = escape(answer) if answer is not None else "<i>no answer</i>"
    return (
        f'<article class="card">{drawn}<div><p><small>{escape(place)}</small></p>'
        f"<p><b>{escape(item.question)}</b></p><p>{said}</p>"
        f"<p><small>expected · {escape(words)}</small></p>"
        f"<p><small>graded · {escape(tally)}</small></p></div></article>"
    )


def _drawn(prediction: Prediction, pictures: Pictures) -> str:
    """The picture with all boxes, or why there is none: a report needs no pictures."""
    item = prediction.item
    try:
        image = pictures(item)
    except (ValueError, OSError) as error:
        return f"<p><small>{escape(str(error))}</small></p>"
    spans = [Span(phrase=_EXPECTED, box=box, start=0, end=0, box_start=0, box_end=0) for box in item.boxes]
    spans += find_spans(prediction.answer or "", item.size) if item.size else []
    return embedded_picture(draw_overlay(image, spans, dict(enumerate(item.regions))))


def _listed(values: Mapping[str, Any]) -> str:
    """ "name: dog, absent: [cat]": texts as they are, other values as JSON."""
    return ", ".join(
        f"{name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in values.items()
    )
