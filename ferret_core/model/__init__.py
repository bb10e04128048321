"""The model in transformers' conventions. Importing this package registers it with the Auto classes."""

import os
from contextlib import suppress

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

from ferret_core.model.configuration import ConvStemVisionConfig, FerretConfig
from ferret_core.model.modeling import PARTS, FerretForConditionalGeneration, FerretModel, default_device, default_dtype
from ferret_core.model.processor import FerretImageProcessor, FerretProcessor
from ferret_core.model.region_encoder import sample_points
from ferret_core.model.tokenizer import FerretLlamaTokenizer
from ferret_core.model.vision import ConvStemVisionModel

if not torch.cuda.is_available():
    # transformers imports DeepSpeed where it is installed, which would look for accelerators, aloud and on standard output.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

AutoModel.register(ConvStemVisionConfig, ConvStemVisionModel, exist_ok=True)
AutoConfig.register("ferret", FerretConfig, exist_ok=True)
AutoModel.register(FerretConfig, FerretModel, exist_ok=True)
AutoModelForImageTextToText.register(FerretConfig, FerretForConditionalGeneration, exist_ok=True)
with suppress(ImportError):  # some releases have none without torchvision
    AutoImageProcessor.register(FerretConfig, slow_image_processor_class=FerretImageProcessor, exist_ok=True)
AutoTokenizer.register(FerretConfig, fast_tokenizer_class=FerretLlamaTokenizer, exist_ok=True)
AutoProcessor.register(FerretConfig, FerretProcessor, exist_ok=True)

__all__ = [
    "PARTS",
    "ConvStemVisionConfig",
    "FerretConfig",
    "FerretForConditionalGeneration",
    "FerretImageProcessor",
    "FerretLlamaTokenizer",
    "FerretModel",
    "FerretProcessor",
    "default_device",
    "default_dtype",
    "sample_points",
]
