"""A whole checkpoint, in our layout or the original release's: opened without reading a weight, written weight by weight.

    checkpoint = open_checkpoint("FERRET-7B")
    write_checkpoint(checkpoint, "checkpoints/ferret-7b", layout="ferret", origin=Origin("convert", {"source": "FERRET-7B"}))

What our layout has no use for, the original's `config.json` and sentencepiece vocabulary, is kept in `original/`, so that the
way back gives the same files.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ferret_core.checkpoint import original
from ferret_core.checkpoint.bundled import checkpoint_path
from ferret_core.checkpoint.card import write_card
from ferret_core.checkpoint.checksums import Origin, write_checksums
from ferret_core.checkpoint.options import Dtype, Format, Layout
from ferret_core.checkpoint.parts import are_differences, problems
from ferret_core.checkpoint.settings import read_json
from ferret_core.checkpoint.shards import write_shards
from ferret_core.checkpoint.weights import Weight, by_name
from ferret_core.disk import directory_written_whole
from ferret_core.model import FerretConfig, FerretLlamaTokenizer, FerretProcessor

WORD_WEIGHTS = ("model.language_model.embed_tokens.weight", "lm_head.weight")
"""Those with a row for each word of the vocabulary."""
TOWER = "model.vision_tower."
"""How the names of the vision tower's weights begin."""

_TOKENIZER_FILES = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_KEPT = ("config.json", "generation_config.json", *_TOKENIZER_FILES)


@dataclass(frozen=True)
class Checkpoint:
    """Configuration and weights, the latter under our names and not read yet."""

    directory: Path
    """Where the tokenizer and the rest lie."""
    config: FerretConfig
    weights: dict[str, Weight]

    @property
    def is_original(self) -> bool:
        """Whether it lies in the original layout."""
        return original.is_original_directory(self.directory)

    @property
    def layout(self) -> Layout:
        """That it lies in."""
        return "original" if self.is_original else "ferret"

    @property
    def has_tower(self) -> bool:
        """Whether the vision tower is among the weights."""
        return any(name.startswith(TOWER) for name in self.weights)

    @property
    def tower_name(self) -> str:
        """What a checkpoint in the original layout calls its vision tower."""
        return str(read_json(self.directory / "config.json").get("mm_vision_tower"))

    def holding(self, weights: Mapping[str, Weight], dtype: torch.dtype | None = None) -> Checkpoint:
        """The same with other weights, and of another type if one is given."""
        config = copy.deepcopy(self.config)
        config.dtype = dtype or config.dtype
        return Checkpoint(self.directory, config, dict(weights))


def open_checkpoint(name_or_path: str | Path, vision_tower: str | Path | None = None, *, quantized: bool = False) -> Checkpoint:
    """A bundled checkpoint or a directory in either layout.

    Args:
        name_or_path: of the checkpoint.
        vision_tower: directory of a CLIP, for a checkpoint that comes without, as what is made from a delta does.
        quantized: whether one of integers will do as well.

    Raises:
        ValueError: there is no `config.json` or no weights, a file is damaged, or the weights are quantized.
    """
    directory = Path(checkpoint_path(str(name_or_path)))
    if not (directory / "config.json").is_file():
        raise ValueError(f"{directory}: no config.json; must be the directory of a checkpoint")
    settings = read_json(directory / "config.json")
    if settings.get("model_type") != "ferret" and not original.is_original(settings):
        raise ValueError(f"{directory}: is a {settings.get('model_type')}; must be a Ferret, in our layout or the original one")
    config = FerretConfig.from_pretrained(str(directory))
    if getattr(config, "quantization_config", None) and not quantized:
        raise ValueError(f"{directory}: is quantized; use the checkpoint that it was made from")
    weights = by_name(original.read_weights(directory))
    if not weights:
        raise ValueError(f"{directory}: no *.safetensors and no pytorch_model*.bin")
    tower = by_name(original.read_weights(directory / "vision_tower"))
    if vision_tower is not None:
        tower = by_name(original.read_weights(vision_tower, "vision_tower."))
        config.vision_config = _tower_config(Path(vision_tower))
        if not tower:
            raise ValueError(f"vision_tower: {vision_tower} holds no weights")
    if tower:  # which replaces one that is among the others
        weights = {name: weight for name, weight in weights.items() if not name.startswith(TOWER)} | tower
    return Checkpoint(directory, config, weights)


def require_whole(checkpoint: Checkpoint, role: str) -> None:
    """Raises `ValueError` unless all weights of a model are there. The vision tower may be missing: the original layout can do
    without, and ours says so itself.
    """
    if are_differences(checkpoint.weights):
        raise ValueError(f"{role} is a delta; add it to its base first, `ferret checkpoint delta apply`")
    if found := problems(checkpoint.weights, checkpoint.config, without=("vision_tower",)):
        raise ValueError(f"{role}: {'; '.join(found[:3])}; see `ferret checkpoint inspect`")


def write_checkpoint(
    checkpoint: Checkpoint,
    output: str | Path,
    *,
    origin: Origin,
    layout: Layout | None = None,
    dtype: Dtype = "source",
    format: Format = "safetensors",
    shard_bytes: int | None = None,
    tokenizer: str | Path | None = None,
) -> Path:
    """Writes weights, configuration, tokenizer, a model card and checksums. Returns the directory, which appears when complete.

    Args:
        checkpoint: what to write.
        output: the directory to make.
        origin: what it was made from, for the card.
        layout: ours or the original release's; by default the one that it was in.
        dtype: of the weights; `source` leaves each as it is.
        format: this and the next are as in `Files`.
        shard_bytes: most bytes of each.
        tokenizer: its directory.

    Raises:
        ValueError: `output` is there already, the layout cannot express the model, or something is missing.
    """
    layout = layout or checkpoint.layout
    if format == "bin" and layout == "ferret":
        raise ValueError("format: bin is for the original layout; ours is safetensors")
    if layout == "ferret" and not checkpoint.has_tower:
        raise ValueError(
            f"{checkpoint.directory}: has no vision tower; name the CLIP that it was trained with by --vision-tower (of the "
            f"published ones: hf download {original.STOCK_TOWER} --local-dir clip-vit-large-patch14-336)"
        )
    if dtype != "source":
        kind = getattr(torch, dtype)
        checkpoint = checkpoint.holding({name: weight.cast(kind) for name, weight in checkpoint.weights.items()}, kind)
    with directory_written_whole(output) as fresh:
        if layout == "ferret":
            _write_ours(checkpoint, fresh, shard_bytes)
        else:
            _write_original(checkpoint, fresh, shard_bytes, format, tokenizer)
        write_card(fresh, Path(output).name, checkpoint.weights.values(), origin)
        write_checksums(fresh)
    return Path(output)


def _write_ours(checkpoint: Checkpoint, fresh: Path, shard_bytes: int | None) -> None:
    config, source = checkpoint.config, checkpoint.directory
    kept = source if checkpoint.is_original else source / "original"
    processor = FerretProcessor.from_pretrained(str(source))
    if checkpoint.is_original:
        processor = FerretProcessor.for_config(config, processor.tokenizer)
        _copy(source, fresh / "original", _KEPT)
    elif kept.is_dir():
        _copy(kept, fresh / "original", _KEPT)
    config.save_pretrained(fresh)
    processor.save_pretrained(fresh)
    write_shards(checkpoint.weights.values(), fresh, shard_bytes)


def _write_original(
    checkpoint: Checkpoint, fresh: Path, shard_bytes: int | None, format: Format, tokenizer: str | Path | None
) -> None:
    source = checkpoint.directory
    kept = source if checkpoint.is_original else source / "original"
    config = _original_settings(checkpoint.config, read_json(kept / "config.json"))
    if checkpoint.config.dtype is not None:
        config["torch_dtype"] = str(checkpoint.config.dtype).removeprefix("torch.")
    words = Path(tokenizer) if tokenizer is not None else kept
    if not (words / "tokenizer.model").is_file():
        raise ValueError(
            f"tokenizer: {words} has no tokenizer.model, LLaMA's sentencepiece vocabulary, which the original layout needs; "
            "name a directory that has it by --tokenizer"
        )
    _copy(kept, fresh, ("generation_config.json",))
    _copy(words, fresh, _TOKENIZER_FILES)
    if not (fresh / "added_tokens.json").is_file():
        added = FerretLlamaTokenizer.from_original(words).get_added_vocab()
        (fresh / "added_tokens.json").write_text(json.dumps({"<region_fea>": added["<region_fea>"]}, indent=2) + "\n")
    (fresh / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    tower = [weight for name, weight in checkpoint.weights.items() if name.startswith(TOWER)]
    rest = [weight for name, weight in checkpoint.weights.items() if not name.startswith(TOWER)]
    write_shards(map(original.as_original, rest), fresh, shard_bytes, format)
    if tower:
        (fresh / "vision_tower").mkdir()
        write_shards(map(original.as_original, tower), fresh / "vision_tower", shard_bytes, format)
        checkpoint.config.vision_config.save_pretrained(fresh / "vision_tower")
        _copy(source / "vision_tower", fresh / "vision_tower", ("preprocessor_config.json",))


def _original_settings(config: FerretConfig, kept: dict[str, Any]) -> dict[str, Any]:
    """The original layout's configuration of a model: a kept one, but for what has changed since."""
    settings = original.original_config(config)
    if not kept:
        return settings
    before = original.original_config(FerretConfig.from_dict(dict(kept)))
    return kept | {name: value for name, value in settings.items() if before.get(name) != value}


def _tower_config(directory: Path) -> Any:
    settings = read_json(directory / "config.json")
    if not str(settings.get("model_type", "")).startswith("clip"):
        raise ValueError(f"vision_tower: {directory} is no CLIP; must be a directory with its config.json and weights")
    vision = dict(settings.get("vision_config", settings)) | {"model_type": "clip_vision_model"}
    return FerretConfig.from_dict({"vision_config": vision}).vision_config


def _copy(source: Path, target: Path, names: Iterable[str]) -> None:
    target.mkdir(exist_ok=True)
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)  # not its mode: others are to serve it
