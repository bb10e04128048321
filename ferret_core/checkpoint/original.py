"""The layout of the original release: a flat `config.json`, LLaMA-style names, the vision tower in a folder of its own.

    config.json  pytorch_model*.bin  tokenizer.model  added_tokens.json  vision_tower/{config.json, pytorch_model.bin}

`FerretConfig`, `FerretForConditionalGeneration` and `FerretProcessor` recognise it and come here to translate.
Pickles are only ever read with `weights_only=True`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionModel

CLIP_VIT_L_14_336 = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768,
}  # fmt: skip

_LLAMA_FIELDS = (
    "bos_token_id", "eos_token_id", "pad_token_id", "hidden_act", "hidden_size", "initializer_range", "intermediate_size",
    "max_position_embeddings", "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps",
    "tie_word_embeddings", "vocab_size",
)  # fmt: skip

# Their name -> ours, first match wins.
_RENAMES = [
    (r"^model\.mm_projector\.", "model.multi_modal_projector."),
    (r"^model\.region_fea_adapter\.", "model.region_encoder.linear."),
    (r"^model\.region_geo_sampler\.diff_projector_list\.(\d+)\.", r"model.region_encoder.stages.\1.difference."),
    (r"^model\.region_geo_sampler\.agg_projector_list\.(\d+)\.net\.0\.", r"model.region_encoder.stages.\1.aggregate."),
    (r"^model\.region_geo_sampler\.agg_projector_list\.(\d+)\.norm\.", r"model.region_encoder.stages.\1.norm."),
    (r"^model\.region_geo_sampler\.flatten_projector\.", "model.region_encoder.flatten."),
    (r"^model\.region_geo_sampler\.dim_projector\.", "model.region_encoder.output."),
    (r"^(model\.)?vision_tower\.(vision_tower\.)?(vision_model\.)?", "model.vision_tower."),
    (r"^vision_model\.", "model.vision_tower."),
    (r"^model\.(?=embed_tokens|layers|norm)", "model.language_model."),
]
_IGNORED = re.compile(r"rotary_emb\.inv_freq$|position_ids$|^(text_model|text_projection|visual_projection|logit_scale)\b")


def is_original(config: dict[str, Any]) -> bool:
    """Whether a `config.json` is the original release's: one flat dictionary for the decoder and everything else."""
    return "mm_hidden_size" in config or "mm_vision_tower" in config


def is_original_directory(directory: str | Path) -> bool:
    """Whether a local directory holds a checkpoint in the original layout."""
    path = Path(directory) / "config.json"
    return path.is_file() and is_original(json.loads(path.read_text()))


def convert_config(config: dict[str, Any], directory: str | None) -> dict[str, Any]:
    """Their flat configuration as `FerretConfig`'s fields.

    Args:
        config: the original `config.json`.
        directory: where it lies; its `vision_tower/config.json`, if there, says the tower's size. The name in
            `mm_vision_tower` does not: it may be a stock name on a tower of another size.
    """
    towers = (Path(directory or "") / "vision_tower", Path(config.get("mm_vision_tower") or ""))
    files = [tower / "config.json" for tower in towers if directory and tower != Path() and (tower / "config.json").is_file()]
    tower: dict[str, Any] = json.loads(files[0].read_text()) if files else CLIP_VIT_L_14_336
    return {
        "architectures": ["FerretForConditionalGeneration"],
        "vision_config": dict(tower.get("vision_config", tower)),  # a whole CLIP's has one for its text as well
        "text_config": {key: config[key] for key in _LLAMA_FIELDS if key in config} | {"model_type": "llama"},
        "vision_feature_layer": config.get("mm_vision_select_layer", -2),
        "region_encoder": "spatial_aware" if config.get("region_geo_sampler") else "mean_pool",
        "sampler_pooling": config.get("sampler_pooler_mode", "max"),
        "transposed_region_points": True,
        "region_token_id": config.get("im_region_fea_token", config["vocab_size"] - 1),
        "dtype": config.get("torch_dtype"),
    }


def read_state_dict(directory: str | Path, vision_tower: bool = True) -> dict[str, Tensor]:
    """The weights of an original checkpoint under our names, memory-mapped where the file allows it.

    Args:
        directory: where it lies.
        vision_tower: whether the tower's weights are needed: they may have to be fetched.

    Raises:
        FileNotFoundError: the directory holds no weights, or none of the vision tower and its stock one is out of reach.
    """
    directory = Path(directory)
    files = [*_weight_files(directory), *_weight_files(directory / "vision_tower")]
    if not files:
        raise FileNotFoundError(f"{directory}: no pytorch_model*.bin or *.safetensors")
    weights: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in _read(file).items():
            if not _IGNORED.search(name):
                ours = _rename(name)
                # Their 1x1 convolutions over neighbours are linear layers here.
                weights[ours] = tensor.squeeze(-1) if ours.endswith("aggregate.weight") else tensor
    if vision_tower and not any(name.startswith("model.vision_tower.") for name in weights):
        weights |= _stock_vision_tower(directory)
    return weights


def _stock_vision_tower(directory: Path) -> dict[str, Tensor]:
    """Deltas, and what is made from them, come without the tower, which was never trained: it is the one of that name."""
    name = json.loads((directory / "config.json").read_text()).get("mm_vision_tower")
    try:
        tower = CLIPVisionModel.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{directory}: has no weights of the vision tower, and mm_vision_tower = {name!r} could not be loaded; put CLIP's "
            f"config.json and weights into {directory / 'vision_tower'}"
        ) from error
    return {_rename(f"vision_tower.{name}"): tensor for name, tensor in tower.state_dict().items() if not _IGNORED.search(name)}


def _weight_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.safetensors")) or sorted(directory.glob("pytorch_model*.bin"))


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return load_file(file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # written before torch 1.6: cannot be mapped
        return torch.load(file, map_location="cpu", weights_only=True)


def _rename(name: str) -> str:
    for pattern, replacement in _RENAMES:
        name, count = re.subn(pattern, replacement, name)
        if count:
            break
    return name
