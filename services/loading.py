"""What the three model deployments have in common: loading their own part of a checkpoint, on their own device."""

from __future__ import annotations

import torch

from ferret_core.checkpoint.bundled import checkpoint_path
from ferret_core.model import FerretForConditionalGeneration, FerretProcessor, default_device, default_dtype
from ferret_core.model.modeling import Part
from services.settings import ModelSettings


def load_part(settings: ModelSettings, part: Part) -> tuple[FerretForConditionalGeneration, FerretProcessor]:
    """The model with the weights of one part only, and the processor."""
    processor = FerretProcessor.from_pretrained(checkpoint_path(settings.path))
    return load_model(settings, part).to(default_device()), processor


def load_model(settings: ModelSettings, part: Part) -> FerretForConditionalGeneration:
    """The model alone, in the type that its device is going to compute with."""
    path = checkpoint_path(settings.path)
    dtype = getattr(torch, settings.dtype) if settings.dtype else default_dtype(default_device(), path)
    return FerretForConditionalGeneration.from_pretrained(path, dtype=dtype, parts=(part,)).eval()
