"""RefCOCO, RefCOCO+ and RefCOCOg: `refs(unc).p` (or `umd`, `google`; or the same list as `.json`) and `instances.json`."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from ferret_core.data.build.coco import CocoFile
from ferret_core.data.build.reading import Request, check_items, load_json
from ferret_core.data.build.scene import Description, Scene, clean

SPLITS = {"train": {"train"}, "validation": {"val"}, "test": {"test", "testA", "testB"}}
REF_FILES = tuple(f"refs({by}).{suffix}" for by in ("unc", "umd", "google") for suffix in ("p", "json"))


class _PlainUnpickler(pickle.Unpickler):
    """Builds lists, dicts, texts and numbers, and calls nothing."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"asks for {module}.{name}; refs hold plain lists, dicts, texts and numbers only")


def load_refs(path: Path) -> list[dict[str, Any]]:
    """The refs of a pickle or JSON file. A pickle that would run code is a `ValueError`."""
    if path.suffix == ".json":
        return load_json(path)
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file, encoding="utf-8", errors="replace").load()  # written by Python 2
    except Exception as error:  # a damaged pickle raises almost anything
        raise ValueError(f"{path}: not a pickle of refs: {error}") from error


def read_refcoco(request: Request) -> Iterator[Scene]:
    """Scenes of the pictures that have a ref of the split, with expressions that fit one object each."""
    file = CocoFile(request, "instances.json")
    path = request.locate(*REF_FILES)
    refs: dict[int, list[dict]] = {}
    for ref in check_items(path, load_refs(path), request.problems):
        with request.problems.at(f"{path}: ref {ref.get('ref_id')}"):
            if ref["split"] in SPLITS[request.split]:
                if ref["image_id"] not in file.images:
                    raise ValueError(f"image_id {ref['image_id']} is not in {file.path}")
                refs.setdefault(ref["image_id"], []).append(ref)
    file.images = {number: image for number, image in file.images.items() if number in refs}
    for scene, index, image in file.scenes(checked=tuple(file.categories.values())):
        descriptions = []
        for ref in refs[image["id"]]:
            with request.problems.at(f"{path}: ref {ref.get('ref_id')}"):
                if ref["ann_id"] not in index:
                    raise ValueError(f"ann_id {ref['ann_id']} is not among the usable annotations of {file.path}")
                texts = (clean(sentence["sent"]) for sentence in ref["sentences"])
                descriptions += [Description(text, index[ref["ann_id"]], refers=True) for text in texts]
        yield replace(scene, descriptions=tuple(dict.fromkeys(descriptions)))
