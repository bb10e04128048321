"""Low-rank adapters (arXiv 2106.09685) merged into the model that they adapt.

    merge_lora("vicuna-7b-v1.3-assembled", "runs/lora", "checkpoints/merged")

    merged = W + alpha / rank * B A         computed in float32, rounded to W's type

An adapter is a directory of peft's, `adapter_config.json` and `adapter_model.safetensors` (or `.bin`). LLaVA's recipe, and the
original release's after it, puts what it trained beside the adapters into `non_lora_trainables.bin`: that replaces the
base's weights.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from torch import Tensor

from ferret_core.checkpoint.checksums import Origin
from ferret_core.checkpoint.layouts import open_checkpoint, require_whole, write_checkpoint
from ferret_core.checkpoint.options import Writing
from ferret_core.checkpoint.original import as_ours, our_name
from ferret_core.checkpoint.settings import read_json
from ferret_core.checkpoint.weights import Weight, by_name, stored_weights

_SETTINGS = "adapter_config.json"
_WRAPPERS = re.compile(r"^(base_model\.model\.)?(?=model\.|lm_head\.)(model\.(?=model\.|lm_head\.))?")  # peft's and LLaVA's
_ADAPTER = re.compile(r"\.lora_([AB])(\.\w+)?\.weight$")
_KEEP_THE_BASE = (None, True, False, "gaussian", "eva", "orthogonal")  # others take from it what they start with
_UNSUPPORTED = (
    "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias", "trainable_token_indices", "fan_in_fan_out",
    "use_qalora", "use_bdlora", "kasa_config", "monteclora_config", "arrow_config", "target_parameters", "layer_replication",
    "alora_invocation_tokens",
)  # fmt: skip


def merged(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """W (out, in) with what its adapter adds, in float32: A is `down` (rank, in), B is `up` (out, rank)."""
    return weight.float() + scale * (up.float() @ down.float())


def merge_lora(
    base: str | Path,
    adapter: str | Path,
    output: str | Path,
    *,
    vision_tower: str | Path | None = None,
    **writing: Unpack[Writing],
) -> Path:
    """Writes a checkpoint with its adapters merged. Returns the directory, which appears when it is complete.

    Args:
        base: the checkpoint that was adapted, a Ferret in either layout.
        adapter: directory of the adapters.
        output: the directory to make.
        vision_tower: directory of the CLIP, for a base that comes without.
        writing: as in `Writing`.

    Raises:
        ValueError: the base is no whole model, or the adapters are for another one, or of a kind that is not merged here.
    """
    model, directory = open_checkpoint(base, vision_tower), Path(adapter)
    require_whole(model, f"base: {base}")
    settings, files = _settings(directory), _files(directory)
    pairs, others = _adapters(directory, files)
    weights = dict(model.weights)
    for name, pair in pairs.items():
        if name not in weights:
            raise ValueError(f"adapter: {adapter} adapts {name}, which {base} has not; give the model that it was trained on")
        weights[name] = _adapted(weights[name], pair, settings, f"adapter: {adapter}")
    for name, weight in others.items():
        if name not in weights or weights[name].shape != weight.shape:
            raise ValueError(f"adapter: {adapter} has trained {name} {weight.shape}, and {base} has no such weight")
        weights[name] = weight.cast(weights[name].dtype)
    return write_checkpoint(
        model.holding(weights),
        output,
        origin=Origin(
            "merge-lora",
            {"base": base, "adapter": adapter, "vision tower": vision_tower},
            files={"adapter": [directory / _SETTINGS, *files]},
        ),
        **writing,
    )


def _settings(directory: Path) -> dict[str, Any]:
    file = directory / _SETTINGS
    if not file.is_file():
        raise ValueError(f"adapter: {directory} has no {_SETTINGS}; must be a directory of peft's")
    settings = read_json(file)
    if settings.get("peft_type", "LORA") != "LORA":
        raise ValueError(f"adapter: {file} is of the kind {settings['peft_type']}; only LORA is merged")
    for name in _UNSUPPORTED:
        if settings.get(name):
            raise ValueError(f"adapter: {file} sets {name}, which is not merged here; let peft's merge_and_unload do it")
    if (start := settings.get("init_lora_weights")) not in _KEEP_THE_BASE:
        raise ValueError(
            f"adapter: {file} sets init_lora_weights to {start!r}, which is not merged here: it may change the base as well. "
            "Save the adapters for the unchanged base, by peft's path_initial_model_for_weight_conversion"
        )
    alpha = settings.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise ValueError(f"adapter: {file} must have a number for lora_alpha, got {alpha!r}")
    return settings


def _files(directory: Path) -> list[Path]:
    """Those with weights."""
    files = [directory / name for name in ("adapter_model.safetensors", "adapter_model.bin") if (directory / name).is_file()]
    if not files:
        raise ValueError(f"adapter: {directory} has no adapter_model.safetensors and no adapter_model.bin")
    files = files[:1]  # the same twice
    if (directory / "non_lora_trainables.bin").is_file():
        files.append(directory / "non_lora_trainables.bin")
    return files


def _adapters(directory: Path, files: list[Path]) -> tuple[dict[str, dict[str, Weight]], dict[str, Weight]]:
    """A and B by the name of the weight that they adapt; and the weights that were trained whole."""
    pairs: dict[str, dict[str, Weight]] = {}
    others = {}
    for name, weight in by_name(each for file in files for each in stored_weights(file)).items():
        plain = _WRAPPERS.sub("", name)
        if found := _ADAPTER.search(plain):
            adapted = our_name(plain[: found.start()] + ".weight")
            if found[1] in pairs.setdefault(adapted, {}):
                raise ValueError(f"adapter: {directory} has several adapters of {adapted}; save one alone, and merge it")
            pairs[adapted][found[1]] = weight
        else:
            others[our_name(plain)] = as_ours(weight.named(plain))
    for name, pair in pairs.items():
        if pair.keys() != {"A", "B"}:
            raise ValueError(f"adapter: {directory} has half an adapter of {name}; download it again")
    return pairs, others


def _adapted(weight: Weight, pair: dict[str, Weight], settings: dict[str, Any], role: str) -> Weight:
    down, up = pair["A"], pair["B"]
    rank = down.shape[0]
    if (up.shape[0], down.shape[1]) != weight.shape or up.shape[1] != rank:
        raise ValueError(f"{role}: {weight.name} is {weight.shape}, its adapter is for {(up.shape[0], down.shape[1])}")
    scale = settings["lora_alpha"] / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    return replace(weight, read=lambda: merged(weight.read(), down.read(), up.read(), scale).to(weight.dtype))
