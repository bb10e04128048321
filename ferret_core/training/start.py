"""What a run starts from: the model and its task, ready for a strategy."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoTokenizer

from ferret_core.checkpoint.bundled import checkpoint_path
from ferret_core.checkpoint.parts import part_of
from ferret_core.model import FerretConfig, FerretForConditionalGeneration, FerretProcessor
from ferret_core.prompt import REGION_TOKEN
from ferret_core.training.adapters import add_adapters
from ferret_core.training.config import TrainConfig
from ferret_core.training.number_code import initialize_numbers
from ferret_core.training.playground import DenseTask, PlaygroundTask
from ferret_core.training.tasks import InstructTask, Task

TASKS: dict[str, type[Task]] = {"instruct": InstructTask, "playground": PlaygroundTask, "playground_dense": DenseTask}


def build_task(config: TrainConfig) -> Task:
    """The task with the model to start from, ready for a strategy: frozen where it is not trained."""
    model, processor = load_model(config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in config.train)
    if config.lora.rank:
        add_adapters(model, config)
    decoder = model.model.language_model
    decoder.config._attn_implementation = _attention(config)
    if config.activation_checkpointing:
        decoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return TASKS[config.task](model, processor, config)


def load_model(config: TrainConfig) -> tuple[FerretForConditionalGeneration, FerretProcessor]:
    """The model to start from, in the run's precision or more, and its processor."""
    init = Path(checkpoint_path(config.init))
    if init.is_dir():
        if config.tokenizer:
            raise ValueError(f"tokenizer: {init} brings its own; leave it out")
        if getattr(FerretConfig.from_pretrained(str(init)), "quantization_config", None):
            raise ValueError(f"init: {init} is quantized; train the checkpoint that it was made from")
        return (
            FerretForConditionalGeneration.from_pretrained(str(init), dtype=getattr(torch, config.dtype)),
            FerretProcessor.from_pretrained(str(init)),
        )
    if not init.is_file():
        raise ValueError(f"init: {init} is neither a checkpoint's directory nor a config.json")
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer or str(init.parent))
    ferret = FerretConfig.from_dict(json.loads(init.read_text()))
    ferret.text_config.vocab_size = len(tokenizer)
    ferret.region_token_id = tokenizer.convert_tokens_to_ids(REGION_TOKEN)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(ferret.text_config, name, getattr(tokenizer, name))
    model = FerretForConditionalGeneration(ferret)
    initialize_numbers(model, tokenizer)
    return model, FerretProcessor.for_config(ferret, tokenizer)


def _attention(config: TrainConfig) -> str:
    if config.attention != "auto":
        return config.attention
    try:
        import flash_attn  # noqa: F401
    except ModuleNotFoundError:
        return "packed"
    return (
        "flash_attention_2" if torch.cuda.is_available() and config.device != "cpu" and config.precision == "bf16" else "packed"
    )
