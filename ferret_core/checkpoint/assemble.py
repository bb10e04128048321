"""The checkpoint that training starts from, put together from published parts.

    assemble("vicuna-7b-v1.3", "clip-vit-large-patch14-336", "checkpoints/ferret-7b-start", projector="mm_projector.bin")

A LLaMA decoder with its tokenizer and a CLIP vision tower, both directories in Hugging Face's layout; LLaVA's stage-1
projector where there is one; `<region_fea>` added to the vocabulary; a new region encoder (paper, section 5). Weights go from
file to file, one at a time: a 13B needs no more memory than its largest. The directory appears when it is complete.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ferret_core.checkpoint.card import write_card
from ferret_core.checkpoint.checksums import Origin, write_checksums
from ferret_core.checkpoint.layouts import WORD_WEIGHTS
from ferret_core.checkpoint.options import Dtype
from ferret_core.checkpoint.original import original_name, read_weights
from ferret_core.checkpoint.parts import check
from ferret_core.checkpoint.settings import read_json
from ferret_core.checkpoint.shards import write_shards
from ferret_core.checkpoint.weights import Weight, by_name
from ferret_core.disk import directory_written_whole
from ferret_core.model import FerretConfig, FerretForConditionalGeneration, FerretLlamaTokenizer, FerretProcessor
from ferret_core.prompt import REGION_TOKEN

_PROJECTOR = "model.multi_modal_projector."


def assemble(
    decoder: str | Path,
    vision_tower: str | Path,
    output: str | Path,
    projector: str | Path | None = None,
    *,
    dtype: Dtype = "source",
    seed: int = 0,
) -> Path:
    """Makes a checkpoint for `FerretPredictor.from_pretrained` and for `init` of a training run. Returns its directory.

    Args:
        decoder: directory of a LLaMA or Vicuna: `config.json`, weights and `tokenizer.model`.
        vision_tower: directory of a CLIP, whole or its vision model alone: `config.json` and weights.
        output: the directory to make.
        projector: LLaVA's `mm_projector.bin` of stage 1, one linear layer; a new one by default, which has to be trained
            before the rest.
        dtype: of the weights; `source` leaves each as it was.
        seed: of new weights.

    Raises:
        ValueError: a directory lacks something, sizes do not match, or `output` is there already.
    """
    decoder, vision_tower, output = Path(decoder), Path(vision_tower), Path(output)
    if projector is not None and not Path(projector).is_file():
        raise ValueError(f"projector: no such file: {projector}")
    if not (decoder / "tokenizer.model").is_file():
        raise ValueError(f"decoder: {decoder} has no tokenizer.model, LLaMA's sentencepiece vocabulary")
    tokenizer = FerretLlamaTokenizer.from_original(decoder)
    config = _config(decoder, vision_tower, tokenizer)
    weights = by_name(_weights(config, decoder, vision_tower, projector, seed))
    check(weights, config)
    if dtype != "source":
        config.dtype = getattr(torch, dtype)
        weights = {name: weight.cast(config.dtype) for name, weight in weights.items()}
    sources = {"decoder": decoder, "vision tower": vision_tower, "projector": projector}
    with directory_written_whole(output) as fresh:
        write_shards(weights.values(), fresh)
        config.save_pretrained(fresh)
        FerretProcessor.for_config(config, tokenizer).save_pretrained(fresh)
        write_card(fresh, output.name, weights.values(), Origin("assemble", sources, {"seed": seed}))
        write_checksums(fresh)
    return output


def _config(decoder: Path, vision_tower: Path, tokenizer: FerretLlamaTokenizer) -> FerretConfig:
    text, tower = _read_config("decoder", decoder), _read_config("vision_tower", vision_tower)
    if text.get("model_type") != "llama":
        raise ValueError(f"decoder: {decoder} is a {text.get('model_type')}; must be a llama, as Vicuna is")
    vision = dict(tower.get("vision_config") or tower)
    if not str(tower.get("model_type", "")).startswith("clip"):
        raise ValueError(f"vision_tower: {vision_tower} is a {tower.get('model_type')}; must be a CLIP")
    if not isinstance(text.get("vocab_size"), int):
        raise ValueError(
            f"decoder: {decoder / 'config.json'} must have a number for vocab_size, got {text.get('vocab_size')!r}"
        )
    if not len(tokenizer) - 1 <= text["vocab_size"]:
        raise ValueError(f"decoder: {decoder} has {text['vocab_size']} embeddings for a vocabulary of {len(tokenizer) - 1}")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        text[name] = getattr(tokenizer, name)
    return FerretConfig.from_dict(
        {
            "architectures": ["FerretForConditionalGeneration"],
            "vision_config": vision | {"model_type": "clip_vision_model"},
            "text_config": text | {"vocab_size": max(text["vocab_size"], len(tokenizer))},
            "region_token_id": tokenizer.convert_tokens_to_ids(REGION_TOKEN),
            "dtype": text.get("dtype") or text.get("torch_dtype"),
        }
    )


def _read_config(name: str, directory: Path) -> dict:
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(f"{name}: no config.json in {directory}; give a directory in Hugging Face's layout")
    return read_json(path)


def _weights(
    config: FerretConfig, decoder: Path, vision_tower: Path, projector: str | Path | None, seed: int
) -> Iterator[Weight]:
    """All weights under our names, one source after the other."""
    for weight in read_weights(decoder):
        if weight.name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        yield _with_region_token(weight, config) if weight.name in WORD_WEIGHTS else weight
    yield from read_weights(vision_tower, "vision_tower.")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = FerretForConditionalGeneration(config, parts=("region_encoder",))
        if projector is None:
            linear = torch.empty(config.text_config.hidden_size, config.vision_config.hidden_size)
            yield _new(f"{_PROJECTOR}weight", linear.normal_(std=config.text_config.initializer_range))
            yield _new(f"{_PROJECTOR}bias", torch.zeros(config.text_config.hidden_size))
    for name, tensor in encoder.state_dict().items():
        yield _new(name, tensor)
    if projector is not None:
        for weight in read_weights(projector):
            if weight.name not in (f"{_PROJECTOR}weight", f"{_PROJECTOR}bias"):
                theirs = original_name(weight.name)
                raise ValueError(f"projector: {projector} has {theirs}; must be one linear layer, LLaVA's first version's")
            yield weight


def _new(name: str, tensor: Tensor) -> Weight:
    return Weight(name, tuple(tensor.shape), tensor.dtype, lambda: tensor)


def _with_region_token(weight: Weight, config: FerretConfig) -> Weight:
    """Embeddings `(V, D)` with a row for `<region_fea>`: the mean of the tokens before it, as likely as any of them."""
    token, count = config.region_token_id, config.text_config.vocab_size

    def widened() -> Tensor:
        rows = weight.read()
        all_rows = torch.cat((rows, rows.new_zeros(count - len(rows), rows.shape[1])))
        all_rows[token] = rows[:token].float().mean(0)
        return all_rows

    return replace(weight, shape=(count, *weight.shape[1:]), read=widened)
