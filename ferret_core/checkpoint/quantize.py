"""A checkpoint whose decoder's matrices are integers of 8 or 4 bits with scales: half or a quarter of the size.

    quantize("checkpoints/ferret-7b", "checkpoints/ferret-7b-int8", bits=8)

By bitsandbytes (`pip install 'ferret-platform[quantize]'`), on a CPU or a GPU, which transformers saves and loads. Embeddings,
head, vision tower, projector and region encoder stay as they are. 8 bits have a scale for each row, and are what the engine's
int8 kernels take, integer for integer. Elsewhere, and for 4 bits, the engine takes the weights back to floating point when it
starts: answers are those of the quantized weights, and only the files are smaller. Unlike the rest of `ferret checkpoint` this
holds a whole model in memory.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from transformers import BitsAndBytesConfig

from ferret_core.checkpoint.bundled import checkpoint_path
from ferret_core.checkpoint.card import write_card
from ferret_core.checkpoint.checksums import Origin, write_checksums
from ferret_core.checkpoint.layouts import open_checkpoint, require_whole
from ferret_core.checkpoint.weights import stored_weights, weight_files
from ferret_core.disk import directory_written_whole
from ferret_core.model import FerretForConditionalGeneration, FerretProcessor, default_device

_KEPT = ["lm_head", "model.vision_tower", "model.region_encoder", "model.multi_modal_projector"]


def quantize(source: str | Path, output: str | Path, *, bits: int = 8) -> Path:
    """Writes a checkpoint in our layout with a quantized decoder. Returns its directory, which appears when it is complete.

    Args:
        source: a bundled checkpoint or a directory in our layout.
        output: the directory to make.
        bits: 8, a scale for each row; or 4, NF4 (arXiv 2305.14314), one for each 64 weights.

    Raises:
        ValueError: the source is no whole model in our layout, or quantized already; `output` is there; or other bits.
        RuntimeError: bitsandbytes is not installed.
    """
    checkpoint = open_checkpoint(source)
    if checkpoint.is_original:
        raise ValueError(f"source: {source} is in the original layout; convert it first, `ferret checkpoint convert`")
    require_whole(checkpoint, f"source: {source}")
    if not checkpoint.has_tower:
        raise ValueError(f"source: {source} has no vision tower; convert it again, with --vision-tower")
    path, settings = str(checkpoint.directory), _settings(bits)
    with directory_written_whole(output) as fresh:  # before the work, as there may be something already
        model = FerretForConditionalGeneration.from_pretrained(path, quantization_config=settings, device_map=default_device())
        model.save_pretrained(fresh)
        for file in weight_files(fresh):
            file.chmod(0o644)  # safetensors gives it to us alone, but others are to serve it
        FerretProcessor.from_pretrained(path).save_pretrained(fresh)
        write_card(fresh, Path(output).name, stored_weights(fresh), Origin(f"quantize --bits {bits}", {"source": source}))
        write_checksums(fresh)
    return Path(output)


def dequantize(model: FerretForConditionalGeneration) -> None:
    """Takes a decoder's quantized weights back to floating point, in place; a model that has none is as it was."""
    if getattr(model.config, "quantization_config", None):
        model.dequantize(dtype=model.get_input_embeddings().weight.dtype)  # the loader's choice, which integers do not follow


def has_8_bits(model: FerretForConditionalGeneration) -> bool:
    """Whether a decoder's matrices are integers of 8 bits."""
    return getattr(getattr(model.config, "quantization_config", None), "load_in_8bit", False)


@dataclass(frozen=True)
class Measurement:
    """How good, how large and how fast a checkpoint is, in the playground."""

    checkpoint: str
    bytes: int
    """Of its weights' files."""
    accuracy: float
    """Over all questions."""
    seconds: float
    """For all of them."""


def measure(checkpoint: str | Path, scenes: int) -> Measurement:
    """Asks about playground scenes of the test split; for a checkpoint that was trained there."""
    from ferret_core.evaluation.playground import OVERALL, evaluate_playground
    from ferret_core.predictor import FerretPredictor

    predictor = FerretPredictor.from_pretrained(str(checkpoint))
    started = time.monotonic()
    (accuracy,) = (each.value for each in evaluate_playground(predictor, scenes).scores if each.figure == OVERALL)
    seconds = time.monotonic() - started
    size = sum(file.stat().st_size for file in weight_files(checkpoint_path(str(checkpoint))))
    return Measurement(Path(checkpoint).name, size, accuracy, seconds)


def table(measurements: list[Measurement]) -> str:
    """Checkpoints beside one another, in Markdown."""
    rows = [f"| {m.checkpoint} | {m.bytes / 2**20:,.1f} | {m.accuracy:.2%} | {m.seconds:.1f} |" for m in measurements]
    return "\n".join(["| checkpoint | MiB | right answers | seconds |", "|---|---:|---:|---:|", *rows])


def _settings(bits: int) -> BitsAndBytesConfig:
    if bits not in (8, 4):
        raise ValueError(f"bits: must be 8 or 4, got {bits}")
    try:
        import bitsandbytes  # noqa: F401 (transformers imports it, and says less when it is not there)
    except ModuleNotFoundError as error:
        raise RuntimeError("quantizing needs bitsandbytes: pip install 'ferret-platform[quantize]'") from error
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=_KEPT)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=_KEPT)
