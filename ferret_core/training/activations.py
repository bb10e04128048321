"""The memory that one pack of samples takes on its way through the model and back, measured without computing anything.

Each stage runs forward and backward on the meta device, where tensors have shapes and no values, and `LiveMemory` counts the
bytes that are alive at every operation: what autograd keeps, and temporaries. So it holds for whatever the model's code does.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface

from ferret_core.model import FerretForConditionalGeneration
from ferret_core.training.adapters import adapted
from ferret_core.training.config import TrainConfig

REGIONS_PER_SAMPLE = 4
"""A generous guess: most samples of GRIT mention one or two."""


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes of one pack."""

    kept: int
    """Alive from the end of the forward pass until its backward pass comes by."""
    working: int
    """The most that is needed beside that, at any one time."""

    def __add__(self, after: Activations) -> Activations:
        return Activations(kept=self.kept + after.kept, working=max(self.working, after.working))


class LiveMemory(TorchDispatchMode):
    """While it is open, counts the bytes of tensors that operations made: alive now, and at most so far."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        """`known` tensors were there before."""
        super().__init__()
        self.live = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor):
                self._count(each.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:  # a view shares its storage
            self._known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def measure_activations(model: FerretForConditionalGeneration, config: TrainConfig) -> Activations:
    """Of one pack: `micro_batch_size` samples, each with an image, `max_length` tokens and a few regions.

    Args:
        model: on the meta device, in the precision of the run; what is trained requires gradients.
        config: the run.
    """
    samples = config.micro_batch_size
    vision, text = model.config.vision_config, model.config.text_config
    side, patches = vision.image_size, model.config.num_patches
    vision._attn_implementation = text._attn_implementation = _ATTENTION
    dtype = model.dtype

    pixels = torch.empty(samples, 3, side, side, device="meta", dtype=dtype)
    tower = _measure(model.model.vision_tower, model.model.encode_images, pixels)
    if config.task == "playground_dense":
        return tower

    features = torch.empty(samples, patches, vision.hidden_size, device="meta", dtype=dtype)
    features.requires_grad_("vision_tower" in config.train)
    regions = samples * REGIONS_PER_SAMPLE
    points = torch.empty(regions, model.config.sampler_points, 2, device="meta")
    index = torch.empty(regions, dtype=torch.long, device="meta")
    sampler = _measure(model.model.region_encoder, model.model.encode_regions, features, points, index)

    tokens = samples * (config.data.max_length - 1 + patches)  # <image> counts as one of the text's
    decoder = model.model.language_model
    layer = adapted(decoder.layers[0], config.lora)
    hidden = torch.empty(1, tokens, text.hidden_size, device="meta", dtype=dtype, requires_grad=True)
    rotary = decoder.rotary_emb(hidden, torch.empty(1, tokens, device="meta"))
    one = _measure(layer, lambda x, cos, sin: layer(x, attention_mask=None, position_embeddings=(cos, sin)), hidden, *rotary)
    if config.activation_checkpointing:  # a layer keeps its input alone, and computes the rest anew
        width = hidden.numel() * dtype.itemsize
        one = Activations(kept=width, working=one.kept + one.working - width)
    layers = Activations(kept=len(decoder.layers) * one.kept, working=one.working)
    norm = _measure(decoder.norm, decoder.norm, hidden)
    targets = torch.empty(tokens, dtype=torch.long, device="meta")  # as if every token were an answer's
    head = _measure(model.lm_head, lambda x, y: model.lm_head(x[0], y)[0], hidden, targets)
    return tower + sampler + layers + norm + head


def _measure(module: nn.Module, run: Callable[..., Tensor], *inputs: Tensor) -> Activations:
    """What `run` keeps, its output included, and the most it needs on the way there and back.

    Gradients of weights are let go at once: they are no activations.
    """
    hooks = [p.register_post_accumulate_grad_hook(_forget) for p in module.parameters() if p.requires_grad]
    with LiveMemory([*module.parameters(), *module.buffers(), *inputs]) as memory:
        output = run(*inputs)
        kept = memory.live
        if output.requires_grad:
            output.backward(torch.empty_like(output))
    for hook in hooks:
        hook.remove()
    return Activations(kept=kept, working=memory.peak - kept)


def _forget(parameter: Tensor) -> None:
    parameter.grad = None


_ATTENTION = "ferret_shapes"


def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    """`packed_attention` in shapes, as a GPU runs it; the meta device would choose something more wasteful."""
    causal = bool(getattr(module, "is_causal", False))
    output = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal)[0]
    return torch.cat([output], 2).transpose(1, 2).contiguous(), None  # samples come one by one, and are put together


AttentionInterface.register(_ATTENTION, _attention)
