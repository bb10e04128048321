"""A fine-tuned model as its differences from a base, as FERRET-7B and 13B are published, and the way back.

    apply_delta("vicuna-7b-v1.3", "ferret-7b-delta", "FERRET-7B")
    make_delta("vicuna-7b-v1.3", "FERRET-7B", "ferret-7b-delta")

With both sides rounded to half precision first, every step in half precision, as the original release computes:

    delta  = half(target) - half(base)        of the decoder; words that only the target has, and other parts, are the target's
    target = delta + half(base)               with the delta's configuration and tokenizer

**A wrong base is recognised without knowing the right one.** Where |delta| <= |sum| / 4, the two numbers that were subtracted
lay within a factor of two of each other; such a difference is exact in floating point (Sterbenz), so that adding the right base
gives a number of that precision again, always. Another base, even a close relative, soon gives a sum between two such numbers.
Deltas made here also carry a checksum of each weight of their base.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from ferret_core.checkpoint.checksums import Origin, provenance
from ferret_core.checkpoint.layouts import (
    TOWER,
    WORD_WEIGHTS,
    Checkpoint,
    open_checkpoint,
    require_whole,
    write_checkpoint,
)
from ferret_core.checkpoint.options import Files, Writing
from ferret_core.checkpoint.original import original_name, read_weights
from ferret_core.checkpoint.parts import are_differences, part_of
from ferret_core.checkpoint.settings import read_json
from ferret_core.checkpoint.weights import Weight, by_name

_BLOCK = 2**22  # values at a time: some of the arithmetic is in float64
_PUBLISHED = {4096: "lmsys/vicuna-7b-v1.3", 5120: "lmsys/vicuna-13b-v1.3"}
_DIGESTS = "base_weights"  # in provenance.json
_ADDED_WORDS = 128  # at most, where no file says which


def make_delta(
    base: str | Path,
    target: str | Path,
    output: str | Path,
    *,
    exact: bool = False,
    **files: Unpack[Files],
) -> Path:
    """Writes the differences of a model from its base, in the model's layout. Returns the directory.

    The vision tower is part of it in our layout only, whole.

    Args:
        base: directory of a LLaMA.
        target: a checkpoint.
        output: the directory to make.
        exact: in float32 throughout, twice the size.
        files: as in `Files`.

    Raises:
        ValueError: the target is no whole model, or the base has other weights or shapes than its decoder.
    """
    model, stock = open_checkpoint(target), _base_weights(base)
    require_whole(model, f"target: {target}")
    _check_fits(stock, model, f"target: {target}", base)
    dtype = torch.float32 if exact else torch.float16
    digests: dict[str, str] = {}  # filled as weights are read, and written after them

    def difference(weight: Weight) -> Weight:
        def read() -> Tensor:
            values, digest = _copy(weight.read(), dtype), hashlib.sha256()
            for ours, theirs in _blocks(values, stock[weight.name].read()):
                theirs = theirs.to(dtype)
                digest.update(_bytes(theirs))
                ours -= theirs
            digests[weight.name] = digest.hexdigest()
            return values

        return replace(weight, dtype=dtype, read=read)

    kept = {name: weight for name, weight in model.weights.items() if not (model.is_original and name.startswith(TOWER))}
    weights = {name: difference(weight) if part_of(name) == "decoder" else weight.cast(dtype) for name, weight in kept.items()}
    return write_checkpoint(
        model.holding(weights, dtype),
        output,
        origin=Origin("delta make", {"base": base, "target": target}, {_DIGESTS: digests}),
        **files,
    )


def apply_delta(
    base: str | Path,
    delta: str | Path,
    output: str | Path,
    *,
    exact: bool = False,
    check: bool = True,
    vision_tower: str | Path | None = None,
    **writing: Unpack[Writing],
) -> Path:
    """Writes the model that a base and a delta make. Returns its directory, which appears when it is complete.

    Args:
        base: directory of the LLaMA that the delta was made from.
        delta: directory of the delta, in either layout.
        output: the directory to make.
        exact: the sum in float32, not rounded again. The base is rounded to the delta's type all the same, as it was then.
        check: refuse a base that the delta cannot have been made from.
        vision_tower: directory of the CLIP to put in, for our layout: published deltas come without.
        writing: as in `Writing`.

    Raises:
        ValueError: the base is not the delta's, or either is no such thing.
    """
    model, stock = open_checkpoint(delta, vision_tower), _base_weights(base)
    if not are_differences(model.weights):
        raise ValueError(f"delta: {delta} is a whole model, no differences: it needs no base")
    _check_fits(stock, model, f"delta: {delta}", base)
    digests = provenance(model.directory).get(_DIGESTS, {})

    def total(weight: Weight) -> Weight:
        dtype = torch.float32 if exact else weight.dtype

        def read() -> Tensor:
            changes, digest, wrong, empty = weight.read().contiguous(), hashlib.sha256(), 0, True
            values = _copy(changes, dtype)
            for ours, change, theirs in _blocks(values, changes, stock[weight.name].read()):
                theirs = theirs.to(weight.dtype)
                if check:
                    digest.update(_bytes(theirs))
                    wrong += _impossible(change, theirs)
                    empty = empty and not theirs.any()
                ours += theirs
            if check and empty and changes.any():
                raise ValueError(f"base: {base} has only zeros in its {original_name(weight.name)}; download it again")
            if check and (wrong or digests.get(weight.name, digest.hexdigest()) != digest.hexdigest()):
                raise ValueError(
                    f"base: {base} is not what {delta} was made from: its {original_name(weight.name)} is another, and the sum "
                    f"would be noise. Give {_base_name(model)}, of exactly that version"
                )
            return values

        return replace(weight, dtype=dtype, read=read)

    weights = {name: total(each) if part_of(name) == "decoder" else each for name, each in model.weights.items()}
    applied = model.holding(weights, torch.float32 if exact else None)
    require_whole(applied, f"delta: {delta}")
    return write_checkpoint(
        applied,
        output,
        origin=Origin("delta apply", {"base": base, "delta": delta, "vision tower": vision_tower}),
        **writing,
    )


def _base_weights(base: str | Path) -> dict[str, Weight]:
    weights = {name: each for name, each in by_name(read_weights(base)).items() if part_of(name) == "decoder"}
    if not weights:
        raise ValueError(f"base: {base} has no weights of a LLaMA; must be a directory such as vicuna-7b-v1.3")
    if are_differences(weights):
        raise ValueError(f"base: {base} is a delta itself; add it to its own base first")
    return weights


def _check_fits(stock: dict[str, Weight], model: Checkpoint, role: str, base: str | Path) -> None:
    """Raises `ValueError` unless the decoders have the same weights, in the same shapes but for the number of words."""
    decoder = {name: weight for name, weight in model.weights.items() if part_of(name) == "decoder"}
    advice = f"Give {_base_name(model)} as the base"
    for here, there, lacks in ((decoder, stock, f"base: {base}"), (stock, decoder, role)):
        if missing := [name for name in here if name not in there]:
            raise ValueError(f"{lacks} has no {original_name(missing[0])} ({len(missing)} such weights). {advice}")
    for name, weight in decoder.items():
        skipped = 1 if name in WORD_WEIGHTS else 0
        if skipped and stock[name].shape[0] < (least := _words(model, weight.shape[0])):
            raise ValueError(f"base: {base} knows {stock[name].shape[0]:,} words, and must know {least:,}. {advice}")
        if weight.shape[skipped:] != stock[name].shape[skipped:]:
            raise ValueError(
                f"base: {base} is a model of another size: its {original_name(name)} is {stock[name].shape}, and that of "
                f"{role.replace(':', '')} is {weight.shape}. {advice}"
            )


def _words(model: Checkpoint, rows: int) -> int:
    """How many words the base of a model must know at least: all but those that fine-tuning added."""
    added = read_json(model.directory / "added_tokens.json")
    return min(added.values()) if added else rows - _ADDED_WORDS


def _base_name(model: Checkpoint) -> str:
    """What the delta's base is called, as far as anything says."""
    recorded = provenance(model.directory).get("inputs", {}).get("base", {}).get("name")
    return recorded or _PUBLISHED.get(model.config.text_config.hidden_size, "the model that was fine-tuned")


def _impossible(change: Tensor, base: Tensor) -> int:
    """How many sums cannot be the model's, see above; 0 for the right base."""
    total = change.double() + base.double()
    certain = 4 * change.double().abs() <= total.abs()
    return int((~total.isfinite() | certain & (total.to(change.dtype).double() != total)).sum())


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same values of each, a block at a time, as far as the one with the fewest words goes: views, to change in place."""
    flat = [tensor.reshape(-1) for tensor in tensors]
    end = min(map(len, flat))
    for i in range(0, end, _BLOCK):
        yield tuple(each[i : min(i + _BLOCK, end)] for each in flat)


def _copy(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().view(torch.uint8).numpy().data
