"""The data sets there are builders for: `ferret data build SOURCE`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ferret_core.data.build import coco, flickr30k, llava, lvis, objects365, refcoco, visual_genome
from ferret_core.data.build.reading import Request
from ferret_core.data.build.scene import Scene


@dataclass(frozen=True, slots=True)
class Source:
    """A data set."""

    read: Callable[[Request], Iterator[Scene]]
    license: str
    """Of annotations and pictures, as their publishers state it."""
    splits: Iterable[str] = ("train",)
    tasks: tuple[str, ...] = ()
    """What is made of it by default; empty for all that its annotations allow."""


_REFERRING = ("refer", "describe", "phrase")  # what COCO knows of the same objects, COCO's builder asks
_FLICKR = "pictures: Flickr terms of use"
_CC_BY = f"annotations: CC-BY-4.0; {_FLICKR}"
_REFER = f"annotations: Apache-2.0; {_FLICKR}"

SOURCES = {
    "visual-genome": Source(visual_genome.read_visual_genome, "CC-BY-4.0"),
    "objects365": Source(objects365.read_objects365, _CC_BY, objects365.SPLITS),
    "refcoco": Source(refcoco.read_refcoco, _REFER, refcoco.SPLITS, _REFERRING),
    "refcoco+": Source(refcoco.read_refcoco, _REFER, refcoco.SPLITS, _REFERRING),
    "refcocog": Source(refcoco.read_refcoco, _REFER, refcoco.SPLITS, _REFERRING),
    "flickr30k": Source(flickr30k.read_flickr30k, f"non-commercial research and education; {_FLICKR}", flickr30k.SPLITS),
    "lvis": Source(lvis.read_lvis, _CC_BY, lvis.SPLITS),
    "coco": Source(coco.read_coco, _CC_BY, coco.SPLITS),
    "llava": Source(llava.read_llava, f"dialogues: CC-BY-4.0 and OpenAI terms of use; {_FLICKR}", tasks=("dialogue",)),
}
