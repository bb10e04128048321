"""The weights in a file or a directory, one at a time: shapes and types first, values when they are asked for.

    for weight in stored_weights("vicuna-7b-v1.3"):
        weight.name, weight.shape, weight.dtype    # from the headers: nothing has been read
        weight.read()                              # its values, mapped from the file as long as they are in use

A `Weight` may as well be computed from others when it is read: a cast, a sum. Whoever reads one after the other needs memory
for one. No code in a file is ever run: safetensors has none, and a pickle may hold nothing but tensors.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ferret_core.checkpoint.settings import read_json

SAFETENSORS_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""What a safetensors header calls a type."""
_DTYPES = {name: dtype for dtype, name in SAFETENSORS_NAMES.items()}


@dataclass(frozen=True)
class Weight:
    """A tensor that is in a file, or made from such ones once it is read."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor] = field(repr=False, compare=False)
    """Its values, on the CPU."""

    @property
    def size(self) -> int:
        """Parameters."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of its values."""
        return self.size * self.dtype.itemsize

    @property
    def dtype_name(self) -> str:
        """As people write it: float16."""
        return str(self.dtype).removeprefix("torch.")

    def named(self, name: str) -> Weight:
        """The same under another name."""
        return replace(self, name=name)

    def shaped(self, *shape: int) -> Weight:
        """The same values in another shape."""
        return replace(self, shape=shape, read=lambda: self.read().reshape(shape))

    def cast(self, dtype: torch.dtype) -> Weight:
        """The same rounded to another type. Reading raises `ValueError` if it has values that the type cannot hold."""

        def read() -> Tensor:
            values = self.read()
            rounded = values.to(dtype)
            if not rounded.isfinite().all() and values.isfinite().all():
                raise ValueError(f"{self.name}: has values that {str(dtype).removeprefix('torch.')} cannot hold")
            return rounded

        return self if dtype == self.dtype else replace(self, dtype=dtype, read=read)


def by_name(weights: Iterable[Weight]) -> dict[str, Weight]:
    """Weights under their names. Raises `ValueError` if a name is there twice."""
    named: dict[str, Weight] = {}
    for weight in weights:
        if weight.name in named:
            raise ValueError(f"{weight.name}: is there more than once")
        named[weight.name] = weight
    return named


def stored_weights(path: str | Path) -> Iterator[Weight]:
    """The weights in one file, or in all of a directory's, under the names they have there.

    Raises:
        ValueError: a file is damaged or missing, or holds something other than tensors.
    """
    for file in weight_files(path):
        yield from (_in_safetensors if file.suffix == ".safetensors" else _in_pickle)(file)


def weight_files(path: str | Path) -> list[Path]:
    """The file, or a directory's: those that transformers would load, else all of a kind, safetensors before pickles.

    Raises:
        ValueError: an index names a file that is not there, or is none.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    for one, all_files in (("model.safetensors", "*.safetensors"), ("pytorch_model.bin", "pytorch_model*.bin")):
        if (path / one).is_file():  # before its index, as transformers has it
            return [path / one]
        if (path / f"{one}.index.json").is_file():
            return _indexed_files(path / f"{one}.index.json")
        if found := sorted(path.glob(all_files)):
            return found
    return []


def _indexed_files(index: Path) -> list[Path]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{index}: must have a weight_map, of weights to files; download it again")
    names = sorted(set(places.values()))
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise ValueError(f"{index.parent}: {index.name} names {name}, which is not there; download it again")
    return [index.parent / name for name in names]


# ---- safetensors -----------------------------------------------------------------------------------------------------


def _in_safetensors(file: Path) -> Iterator[Weight]:
    with _opened(file) as tensors:
        headers = [(name, tensors.get_slice(name)) for name in tensors.keys()]  # noqa: SIM118 (not a dictionary)
        for name, header in headers:
            if header.get_dtype() not in _DTYPES:
                raise ValueError(f"{file}: {name} is of the type {header.get_dtype()}, which is not supported")
            shape = tuple(header.get_shape())
            yield Weight(name, shape, _DTYPES[header.get_dtype()], partial(_from_safetensors, file, name))


def _from_safetensors(file: Path, name: str) -> Tensor:
    with _opened(file) as tensors:  # anew, so that no page stays mapped once the tensor is gone
        return tensors.get_tensor(name)


def _opened(file: Path) -> safe_open:
    try:
        return safe_open(file, "pt")
    except SafetensorError as error:
        raise ValueError(f"{file}: is no whole safetensors file ({error}); download it again") from error


# ---- pickles ---------------------------------------------------------------------------------------------------------


def _in_pickle(file: Path) -> Iterator[Weight]:
    tensors, mapped = _unpickled(file)
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"{file}: {name!r} is a {type(tensor).__name__}; must hold tensors by name and nothing else")
        if tensor.dtype not in SAFETENSORS_NAMES or tensor.layout != torch.strided or tensor.device.type != "cpu":
            kind = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
            raise ValueError(f"{file}: {name} is of the type {kind}, which is not supported")
        read = partial(_from_pickle, file, name) if mapped else tensor.detach  # what is not mapped is read once, and held
        yield Weight(name, tuple(tensor.shape), tensor.dtype, read)


def _from_pickle(file: Path, name: str) -> Tensor:
    return _unpickled(file)[0][name].detach()


def _unpickled(file: Path) -> tuple[dict[str, Tensor], bool]:
    """What a pickle holds, and whether it is mapped. Nothing that it names is imported or called, save tensors."""
    mapped = True
    try:
        try:
            found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # written before torch 1.6: cannot be mapped
            found, mapped = torch.load(file, map_location="cpu", weights_only=True), False
    except pickle.UnpicklingError as error:
        raise refusal(file, error) from error
    except OSError:  # of the disk, not of the file
        raise
    except Exception as error:  # a damaged pickle raises almost anything
        why = str(error).partition("\n")[0]
        raise ValueError(
            f"{file}: cannot be read as a torch file ({type(error).__name__}: {why}); download it again"
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"{file}: holds a {type(found).__name__}; must hold tensors by name")
    return found, mapped


def refusal(source: str | Path, error: pickle.UnpicklingError) -> ValueError:
    """What to say where torch refused a pickle, in place of its own advice, which is to run it after all."""
    culprit = re.search(r"GLOBAL ([\w.]+)", str(error))
    if culprit:
        why, advice = f"it would run {culprit[1]}", "Use the checkpoint's safetensors files, or get it elsewhere"
    else:
        why, advice = "it is damaged, or holds more than tensors", "Download it again"
    return ValueError(f"{source}: refused: {why}. Nothing in it was run. {advice}")
