"""What the three model deployments have in common: loading their own part of a checkpoint, on their own device."""

from __future__ import annotations

import torch

from ferret_core.checkpoint.bundled import resolve
from ferret_core.model import FerretForConditionalGeneration, FerretProcessor
from ferret_core.model.modeling import Part
from services.settings import ModelSettings


def load_part(settings: ModelSettings, part: Part) -> tuple[FerretForConditionalGeneration, FerretProcessor]:
    """The model with the weights of one part only, and the processor."""
    path = resolve(settings.path)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, settings.dtype or ("float32" if device == "cpu" else "bfloat16"))
    model = FerretForConditionalGeneration.from_pretrained(path, dtype=dtype, parts=(part,))
    return model.to(device).eval(), FerretProcessor.from_pretrained(path)
