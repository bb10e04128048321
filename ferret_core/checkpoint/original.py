"""The layout of the original release: a flat `config.json`, LLaMA-style names, the vision tower in a folder of its own.

    config.json  pytorch_model*.bin  tokenizer.model  added_tokens.json  vision_tower/{config.json, pytorch_model.bin}

`FerretConfig`, `FerretForConditionalGeneration` and `FerretProcessor` recognise it and come here to translate, as does
`ferret checkpoint`, in both directions.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import AutoConfig, CLIPVisionModel

from ferret_core.checkpoint.settings import read_json
from ferret_core.checkpoint.weights import Weight, refusal, stored_weights

if TYPE_CHECKING:
    from ferret_core.model import FerretConfig

STOCK_TOWER = "openai/clip-vit-large-patch14-336"
"""The vision tower of the published checkpoints, which was never trained."""

CLIP_VIT_L_14_336 = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768,
}  # fmt: skip

_LLAMA_FIELDS = (
    "bos_token_id", "eos_token_id", "pad_token_id", "hidden_act", "hidden_size", "initializer_range", "intermediate_size",
    "max_position_embeddings", "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps",
    "tie_word_embeddings", "vocab_size",
)  # fmt: skip

# How names begin there and here; # is the number of a stage.
_NAMES = [
    ("model.mm_projector.", "model.multi_modal_projector."),
    ("model.region_fea_adapter.", "model.region_encoder.linear."),
    ("model.region_geo_sampler.diff_projector_list.#.", "model.region_encoder.stages.#.difference."),
    ("model.region_geo_sampler.agg_projector_list.#.net.0.", "model.region_encoder.stages.#.aggregate."),
    ("model.region_geo_sampler.agg_projector_list.#.norm.", "model.region_encoder.stages.#.norm."),
    ("model.region_geo_sampler.flatten_projector.", "model.region_encoder.flatten."),
    ("model.region_geo_sampler.dim_projector.", "model.region_encoder.output."),
    ("vision_model.", "model.vision_tower."),
    *((f"model.{part}", f"model.language_model.{part}") for part in ("embed_tokens.", "layers.", "norm.")),
]
_TOWER = re.compile(r"^(model\.)?vision_tower\.(vision_tower\.)?(vision_model\.)?")  # other places of vision_model.
_IGNORED = re.compile(r"rotary_emb\.inv_freq$|position_ids$|^(text_model|text_projection|visual_projection|logit_scale)\b")


def is_original(config: dict[str, Any]) -> bool:
    """Whether a `config.json` is the original release's: one flat dictionary for the decoder and everything else."""
    return "mm_hidden_size" in config or "mm_vision_tower" in config


def is_original_directory(directory: str | Path) -> bool:
    """Whether a local directory holds a checkpoint in the original layout."""
    return is_original(read_json(Path(directory) / "config.json"))


def convert_config(config: dict[str, Any], directory: str | None) -> dict[str, Any]:
    """Their flat configuration as `FerretConfig`'s fields.

    Args:
        config: the original `config.json`.
        directory: where it lies; its `vision_tower/config.json`, if there, says the tower's size. The name in
            `mm_vision_tower` does not: it may be a stock name on a tower of another size.

    Raises:
        ValueError: it lacks `vocab_size`, or `mm_vision_tower` is no name.
    """
    if not isinstance(config.get("vocab_size"), int):
        raise ValueError(f"vocab_size must be a number, got {config.get('vocab_size')!r}")
    if not isinstance(config.get("mm_vision_tower") or "", str):
        raise ValueError(f"mm_vision_tower must be a name or a path, got {config['mm_vision_tower']!r}")
    towers = (Path(directory or "") / "vision_tower", Path(config.get("mm_vision_tower") or ""))
    files = [tower / "config.json" for tower in towers if directory and tower != Path() and (tower / "config.json").is_file()]
    tower: dict[str, Any] = read_json(files[0]) if files else _stock_tower(config)
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


def _stock_tower(config: dict[str, Any]) -> dict[str, Any]:
    return CLIP_VIT_L_14_336 | {"hidden_size": config.get("mm_hidden_size", CLIP_VIT_L_14_336["hidden_size"])}


def original_config(config: FerretConfig) -> dict[str, Any]:
    """`FerretConfig`'s fields as their flat configuration.

    Raises:
        ValueError: the original release has no such model.
    """
    text, vision = config.text_config.to_dict(), config.vision_config
    same = {"sampler_points": 512, "sampler_stages": [128, 32], "sampler_neighbors": 24}
    spatial = config.region_encoder == "spatial_aware"
    found = {"sampler_points": config.sampler_points, "sampler_stages": list(config.sampler_stages),
             "sampler_neighbors": config.sampler_neighbors}  # fmt: skip
    problems = [f"{name} is {found[name]}, there always {same[name]}" for name in same if spatial and found[name] != same[name]]
    fields = {key: text[key] for key in _LLAMA_FIELDS if text.get(key) is not None}
    plain = AutoConfig.for_model("llama", **fields).to_dict()
    problems += [
        f"{name} is {text.get(name)}, there always {plain.get(name)}"
        for name in ("rope_parameters", "head_dim", "attention_bias", "mlp_bias")
        if text.get(name) != plain.get(name)
    ]
    if vision.model_type != "clip_vision_model":
        problems.append(f"its vision tower is a {vision.model_type}, there always a CLIP")
    if not config.transposed_region_points:
        problems.append("it reads regions at their place, while the original code exchanges x and y (transposed_region_points)")
    if problems:
        raise ValueError("the original layout cannot express this model: " + "; ".join(problems))
    return fields | {
        "model_type": "ferret",
        "architectures": ["FERRETLlamaForCausalLM"],
        "im_region_fea_token": config.region_token_id,
        "image_aspect_ratio": "square_nocrop",
        "mm_hidden_size": vision.hidden_size,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_tower": STOCK_TOWER,
        "region_fea_adapter": not spatial,
        "region_geo_sampler": spatial,
        "sampler_pooler_mode": config.sampler_pooling,
        "use_mm_proj": True,
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
    places = (directory, directory / "vision_tower")
    weights = {weight.name: weight.read() for place in places for weight in read_weights(place)}
    if not weights:
        raise FileNotFoundError(f"{directory}: no pytorch_model*.bin or *.safetensors")
    if vision_tower and not any(name.startswith("model.vision_tower.") for name in weights):
        weights |= _stock_vision_tower(directory)
    return weights


def read_weights(path: str | Path, prefix: str = "") -> Iterator[Weight]:
    """Weights under our names, whichever layout they are in; what we have no use for is left out.

    Args:
        path: one file, or a directory of which all are read, if there are any.
        prefix: stands before every name in the file, as `vision_tower.` for a CLIP's.
    """
    for weight in stored_weights(path):
        if not _IGNORED.search(weight.name):
            yield as_ours(weight.named(prefix + weight.name))


def as_ours(weight: Weight) -> Weight:
    """A weight of the original layout under our name and in our shape; ours are as they were."""
    ours = weight.named(our_name(weight.name))
    # Their 1x1 convolutions over neighbours are linear layers here.
    return ours.shaped(*ours.shape[:2]) if ours.name.endswith("aggregate.weight") else ours


def as_original(weight: Weight) -> Weight:
    """One of our weights under its name and in its shape there; the vision tower's as in `vision_tower/`."""
    theirs = weight.named(original_name(weight.name))
    return theirs.shaped(*theirs.shape, 1) if weight.name.endswith("aggregate.weight") else theirs


def our_name(name: str) -> str:
    """What we call a weight of the original layout; ours keep their names."""
    return _translated(_TOWER.sub("vision_model.", name), _NAMES)


def original_name(name: str) -> str:
    """What the original layout calls one of our weights; its own keep their names."""
    return _translated(name, [(ours, theirs) for theirs, ours in _NAMES])


def _stock_vision_tower(directory: Path) -> dict[str, Tensor]:
    """Deltas, and what is made from them, come without the tower, which was never trained: it is the one of that name."""
    name = read_json(directory / "config.json").get("mm_vision_tower")
    try:
        tower = CLIPVisionModel.from_pretrained(name)
    except pickle.UnpicklingError as error:
        raise refusal(f"mm_vision_tower = {name}", error) from error
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{directory}: has no weights of the vision tower, and mm_vision_tower = {name!r} could not be loaded; put CLIP's "
            f"config.json and weights into {directory / 'vision_tower'}"
        ) from error
    return {
        our_name(f"vision_tower.{name}"): tensor for name, tensor in tower.state_dict().items() if not _IGNORED.search(name)
    }


def _translated(name: str, beginnings: list[tuple[str, str]]) -> str:
    for old, new in beginnings:
        found = re.match(re.escape(old).replace(r"\#", r"(\d+)"), name)
        if found:
            return new.replace("#", found[1] if found.groups() else "") + name[found.end() :]
    return name
