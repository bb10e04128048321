"""One step of the decoder on a CPU with AVX512-BF16: one call for all layers, in which no result depends on the schedule.

Weights, keys and values are bfloat16 (weights int8 if wanted), sums and what is passed from layer to layer float32.
"""

from __future__ import annotations

import ctypes
from collections import abc

import numpy as np
import torch
from torch import Tensor

from ferret_core.cpu import kernels, pack, supports
from ferret_core.cpu.linear import Precision
from ferret_core.engine.batch import block_tables, chosen_rows
from ferret_core.engine.blocks import blocks_for
from ferret_core.engine.runner import embed
from ferret_core.engine.scheduler import Chunk
from ferret_core.model import FerretForConditionalGeneration


class CpuRunner:
    """Runs a Ferret's decoder. The model stays usable: packed layers take the place of its own."""

    def __init__(
        self, model: FerretForConditionalGeneration, blocks: int, block_size: int, precision: Precision = "bfloat16"
    ) -> None:
        """
        Args:
            model: one that `runs` says yes to.
            blocks: of the cache.
            block_size: positions of each, a multiple of `kernels.BLOCK`.
            precision: of the weights.
        """
        config, decoder = model.config.text_config, model.model.language_model
        self.context_length, self.vocabulary = model.config.context_length, config.vocab_size
        self.free_positions = kernels.ROWS[precision]
        self.parts, self.embeddings = block_size // kernels.BLOCK, decoder.embed_tokens.weight
        width = decoder.layers[0].self_attn.head_dim
        self._keys, self._values = torch.zeros(
            2, len(decoder.layers), blocks * block_size, config.num_key_value_heads, width, dtype=torch.bfloat16
        )
        pack(model.model, "multi_modal_projector")
        layers = (kernels.Layer * len(decoder.layers))()
        self._held: list[object] = []  # what the structures point into
        for number, layer in enumerate(decoder.layers):
            attention, mlp = layer.self_attn, layer.mlp
            layers[number] = kernels.Layer(
                self._vector(layer.input_layernorm.weight),
                *(self._matrix(attention, name, precision) for name in ("q_proj", "k_proj", "v_proj", "o_proj")),
                self._vector(layer.post_attention_layernorm.weight),
                *(self._matrix(mlp, name, precision) for name in ("gate_proj", "up_proj", "down_proj")),
                self._keys[number].data_ptr(),
                self._values[number].data_ptr(),
            )
        cosine, sine = decoder.rotary_emb(torch.empty(0, dtype=torch.float32), torch.arange(self.context_length)[None])
        self.decoder = kernels.Decoder(
            len(layers),
            config.hidden_size,
            config.intermediate_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            width,
            config.rms_norm_eps,
            layers,
            self._vector(decoder.norm.weight),
            self._matrix(model, "lm_head", precision),
            self._vector(cosine[0, :, : width // 2]),
            self._vector(sine[0, :, : width // 2]),
        )

    @staticmethod
    def runs(model: FerretForConditionalGeneration) -> bool:
        """Whether this model can be run here so."""
        weight = model.model.language_model.embed_tokens.weight
        return weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and supports(model.config.text_config)

    @torch.inference_mode()
    def run(self, chunks: abc.Sequence[Chunk]) -> Tensor:
        """As `ModelRunner.run`; the logits are float32."""
        lengths, ends = ([getattr(chunk, name) for chunk in chunks] for name in ("length", "end"))
        size = self.parts * kernels.BLOCK
        tables = block_tables(chunks, blocks_for(max(ends), size), size)
        tables = (tables[..., None] * self.parts + np.arange(self.parts)).reshape(len(chunks), -1)
        chosen = chosen_rows(chunks)
        arrays = [np.ascontiguousarray(each, np.int32) for each in (lengths, ends, tables, chosen)]
        *of_sequences, of_chosen = (each.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)) for each in arrays)
        logits = torch.empty(len(chosen), self.vocabulary)
        what = kernels.Step(len(chunks), tables.shape[1], *of_sequences, len(chosen), of_chosen)
        kernels.step(self.decoder, what, embed(chunks, self.embeddings).float(), logits)
        return logits

    def _matrix(self, module: torch.nn.Module, name: str, precision: Precision) -> kernels.Matrix:
        packed = pack(module, name, precision)
        self._held += packed.buffers()
        return packed.matrix

    def _vector(self, values: Tensor) -> int:
        """The address of values as float32."""
        self._held.append(values := values.detach().float().contiguous())
        return values.data_ptr()
