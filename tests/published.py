"""Checkpoints as large as the published ones, whose values are holes in files: they take no place on the disk."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from ferret_core.checkpoint.weights import SAFETENSORS_NAMES, Weight

SIZES = {"7B": (4096, 11008, 32, 32), "13B": (5120, 13824, 40, 40)}
"""Width, inner width, layers and heads."""


def sparse(file: Path, tensors: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
    """A safetensors file with a true header, whose values are a hole: it takes no place on the disk."""
    header, offset = {}, 0
    for name, (shape, dtype) in tensors.items():
        end = offset + Weight(name, shape, dtype, lambda: None).bytes
        header[name] = {"dtype": SAFETENSORS_NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + offset)


def sparse_shards(directory: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Half-precision weights in two files: Linux does not map more at once than there is memory."""
    names = list(shapes)
    for i, held in enumerate((names[: len(names) // 2], names[len(names) // 2 :])):
        sparse(directory / f"model-{i + 1:05}-of-00002.safetensors", {name: (shapes[name], torch.float16) for name in held})


def decoder(width: int, inner: int, layers: int, words: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a LLaMA's weights, as old versions of transformers save them."""
    shapes = {"model.embed_tokens.weight": (words, width), "model.norm.weight": (width,), "lm_head.weight": (words, width)}
    for i in range(layers):
        layer = f"model.layers.{i}."
        shapes |= {f"{layer}self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        shapes |= {f"{layer}mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        shapes |= {f"{layer}mlp.down_proj.weight": (width, inner), f"{layer}self_attn.rotary_emb.inv_freq": (64,)}
        shapes |= {f"{layer}{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    return shapes


def ferret(
    tiny: Path, source: Path, width: int, inner: int, layers: int, heads: int, words: int = 32001
) -> dict[str, tuple[int, ...]]:
    """A Ferret in the original layout without its vision tower, in two files, with the small one's other settings.

    All its weights are zero: to us, it is a delta. Returns the shapes of its weights.
    """
    source.mkdir()
    settings = json.loads((tiny / "config.json").read_text()) | {
        "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "vocab_size": words, "mm_hidden_size": 1024, "im_region_fea_token": words - 1, "torch_dtype": "float16",
    }  # fmt: skip
    (source / "config.json").write_text(json.dumps(settings))
    d, theirs = 1024, decoder(width, inner, layers, words)
    theirs |= {"model.mm_projector.weight": (width, d), "model.mm_projector.bias": (width,)}
    sampler = "model.region_geo_sampler."
    for i in range(2):
        theirs |= {
            f"{sampler}diff_projector_list.{i}.weight": (d + 2, d + 2),
            f"{sampler}diff_projector_list.{i}.bias": (d + 2,),
        }
        theirs |= {f"{sampler}agg_projector_list.{i}.net.0.weight": (d, 2 * (d + 2), 1)}
        theirs |= {f"{sampler}agg_projector_list.{i}.{name}": (d,) for name in ("net.0.bias", "norm.weight", "norm.bias")}
    theirs |= {f"{sampler}flatten_projector.weight": (d, 32 * d), f"{sampler}flatten_projector.bias": (d,)}
    theirs |= {f"{sampler}dim_projector.weight": (width, d), f"{sampler}dim_projector.bias": (width,)}
    sparse_shards(source, theirs)
    return theirs


def vicuna(source: Path, width: int, inner: int, layers: int, words: int = 32000) -> None:
    """A base for it, whose last norm is that of a model."""
    source.mkdir()
    shapes = decoder(width, inner, layers, words)
    sparse_shards(source, {name: shape for name, shape in shapes.items() if name != "model.norm.weight"})
    save_file({"model.norm.weight": torch.ones(width, dtype=torch.float16)}, source / "norm.safetensors")
