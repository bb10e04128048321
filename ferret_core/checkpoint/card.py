"""The model card of a checkpoint, `README.md`, and beside it what it was made from, `provenance.json`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from ferret_core.checkpoint.checksums import PROVENANCE, SUMS, Origin
from ferret_core.checkpoint.parts import parameters, part_of
from ferret_core.checkpoint.weights import Weight

_CARD = """\
---
pipeline_tag: image-text-to-text
tags: [ferret, referring, grounding]
---
# {name}

A Ferret (arXiv 2310.07704): point at anything in a picture, ask, and get an answer with boxes.
{note}
| part | parameters | type |
|---|---:|---|
{rows}

Made by `{command}` from

{sources}

whose checksums are in `{provenance}`; those of the files here are in `{sums}`. The licences of what it was
made from hold for it as well.
"""


def write_card(directory: Path, name: str, weights: Iterable[Weight], origin: Origin) -> None:
    """Writes both into a directory whose weights are there."""
    made = origin.to_json()
    (directory / PROVENANCE).write_text(json.dumps(made, indent=2) + "\n")
    parts: dict[str, list[Weight]] = {}
    for weight in weights:
        parts.setdefault(part_of(weight.name), []).append(weight)
    is_delta = origin.command == "delta make"
    card = _CARD.format(
        name=name,
        note="These are differences: `ferret checkpoint delta apply` adds its base.\n" if is_delta else "",
        rows="\n".join(
            f"| {part.replace('_', ' ')} | {sum(map(parameters, held)):,} | {', '.join(sorted({w.dtype_name for w in held}))} |"
            for part, held in parts.items()
        ),
        command=made["command"],
        sources="\n".join(f"- {role}: `{source['name']}`" for role, source in made["inputs"].items()),
        provenance=PROVENANCE,
        sums=SUMS,
    )
    (directory / "README.md").write_text(card)
