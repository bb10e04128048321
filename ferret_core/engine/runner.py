"""One step of the decoder over many sequences: the LLaMA arithmetic with fused weights, and attention over blocks.

Shapes: T positions of a step, D decoder width, H heads, K key heads, W width of a head, I inner width.
"""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ferret_core.engine import flash_attention
from ferret_core.engine.attention import Attention, KeyValueCache, TorchAttention
from ferret_core.engine.batch import Batch, chosen_rows
from ferret_core.engine.blocks import blocks_for
from ferret_core.engine.cuda_graphs import Capture, DecodeGraphs
from ferret_core.engine.scheduler import Chunk
from ferret_core.model import FerretForConditionalGeneration


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of a decoder layer; what reads the same input is one matrix."""

    attention_norm: Tensor
    """`(D,)`."""
    query_key_value: Tensor
    """`((H + 2 K) W, D)`."""
    output: Tensor
    """`(D, H W)`."""
    mlp_norm: Tensor
    """`(D,)`."""
    gate_up: Tensor
    """`(2 I, D)`."""
    down: Tensor
    """`(D, I)`."""
    activation: abc.Callable[[Tensor], Tensor]


class ModelRunner:
    """Runs a Ferret's decoder. The model stays usable: its weights become views of the fused ones."""

    free_positions = 1  # more would leave the captured steps of a GPU

    def __init__(
        self,
        model: FerretForConditionalGeneration,
        blocks: int,
        block_size: int,
        attention: type[Attention] = TorchAttention,
        capture: Capture | None = None,
        max_running: int = 64,
        all_reduce: abc.Callable[[Tensor], object] = lambda _: None,
    ) -> None:
        """Gets memory for keys and values.

        Args:
            model: whose decoder to run: whole, or the share of it that a rank of `tensor_parallel` has.
            blocks: of the cache.
            block_size: positions of a block.
            attention: how to look back.
            capture: how to keep steps for later in which every answer goes on by a token; None computes them anew.
            max_running: the most answers of such a step.
            all_reduce: adds to a tensor, in place, what the other ranks have in its stead.
        """
        config, decoder = model.config.text_config, model.model.language_model
        self.context_length, self.vocabulary = model.config.context_length, config.vocab_size
        self.device, self.epsilon = model.device, config.rms_norm_eps
        first = decoder.layers[0].self_attn
        self.width = first.head_dim
        self.heads, self.key_heads = (len(each.weight) // self.width for each in (first.q_proj, first.k_proj))
        self._all_reduce = all_reduce
        self.embeddings, self.head = decoder.embed_tokens.weight, model.lm_head
        self.layers = [_layer(layer) for layer in decoder.layers]
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # of what was fused
        self.final_norm = decoder.norm.weight
        dtype = self.embeddings.dtype
        positions = torch.arange(self.context_length, device=self.device)[None]
        cosine, sine = decoder.rotary_emb(torch.empty(0, dtype=dtype, device=self.device), positions)
        self.cosine, self.sine = cosine[0, :, None], sine[0, :, None]
        self.cache = KeyValueCache(
            layers=len(self.layers),
            blocks=blocks,
            size=block_size,
            heads=self.key_heads,
            width=self.width,
            dtype=dtype,
            device=self.device,
        )
        self.attention, self.graphs = attention, None
        if capture:
            most = min(blocks_for(self.context_length, block_size), blocks)
            with torch.inference_mode():
                self.graphs = DecodeGraphs(
                    self._decode,
                    capture,
                    rows=max_running,
                    widths=attention.table_widths(most, block_size),
                    size=block_size,
                    scratch=self.cache.scratch,
                    device=self.device,
                )

    @torch.inference_mode()
    def run(self, chunks: abc.Sequence[Chunk]) -> Tensor:
        """Computes the chunks, the keys and values of which go to the cache.

        Args:
            chunks: of the scheduler.

        Returns:
            logits `(C, vocabulary)` for the C chunks that choose a token, in order.
        """
        self.cache.clear_new(chunks)
        if self.graphs and self.graphs.fits(chunks):
            return self.graphs.run(chunks)
        hidden = self._layers(embed(chunks, self.embeddings), Batch.of_chunks(chunks, self.cache.size, self.device))
        return self._logits(hidden[torch.from_numpy(chosen_rows(chunks)).to(self.device)])

    def _decode(self, inputs: Tensor) -> Tensor:
        """The step that `DecodeGraphs` captures."""
        batch = Batch.of_singles(inputs[:, 1], inputs[:, 2:], self.cache.size)
        return self._logits(self._layers(F.embedding(inputs[:, 0], self.embeddings), batch))

    def _layers(self, hidden: Tensor, batch: Batch) -> Tensor:
        """From embeddings `(T, D)` to what the last layer makes of them."""
        attention = self.attention(batch, self.cache)
        cosine, sine = self.cosine[batch.positions], self.sine[batch.positions]
        turned = self.heads + self.key_heads
        for number, layer in enumerate(self.layers):
            joint = F.linear(self._norm(hidden, layer.attention_norm), layer.query_key_value)
            joint = joint.view(len(hidden), -1, self.width)
            queries, keys = _rotate(joint[:, :turned], cosine, sine).split((self.heads, self.key_heads), 1)
            attended = attention(number, queries, keys, joint[:, turned:])
            hidden = hidden + self._sum(F.linear(attended.flatten(1), layer.output))
            gate, up = F.linear(self._norm(hidden, layer.mlp_norm), layer.gate_up).chunk(2, -1)
            hidden = hidden + self._sum(F.linear(layer.activation(gate) * up, layer.down))
        return hidden

    def _sum(self, share: Tensor) -> Tensor:
        """Of what all ranks have computed."""
        self._all_reduce(share)
        return share

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.head(self._norm(hidden, self.final_norm))

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(hidden, weight.shape, weight, self.epsilon)


def embed(chunks: abc.Sequence[Chunk], embeddings: Tensor) -> Tensor:
    """Embeddings `(T, D)` of the chunks' positions: rows of `embeddings` `(vocabulary, D)`, and the segments."""
    ids = [token for chunk in chunks for token in chunk.token_ids]
    hidden = F.embedding(torch.tensor(ids, device=embeddings.device).clamp(min=0), embeddings)
    row = 0
    for chunk in chunks:
        start = chunk.sequence.computed
        for segment in chunk.sequence.prompt.segments:
            if overlap := segment.overlap(start, chunk.end):
                rows = segment.embeddings(overlap.start - segment.start, overlap.stop - segment.start)
                at = row + overlap.start - start
                hidden[at : at + len(overlap)] = rows.to(hidden)
        row += chunk.length
    return hidden


def fastest_attention(model: FerretForConditionalGeneration) -> type[Attention]:
    """Of those that the model's device, dtype and heads, and what is installed, allow."""
    decoder = model.model.language_model
    weight, width = decoder.embed_tokens.weight, decoder.layers[0].self_attn.head_dim
    if flash_attention.usable(weight.device, weight.dtype, width):
        return flash_attention.FlashAttention
    if weight.is_cuda and find_spec("triton"):
        from ferret_core.engine.triton_attention import TritonAttention

        return TritonAttention
    return TorchAttention


def _rotate(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary position embedding of `(T, heads, W)`, halves against halves as in LLaMA."""
    first, second = states.chunk(2, -1)
    return states * cosine + torch.cat((-second, first), -1) * sine


def _layer(layer: Any) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return Layer(
        layer.input_layernorm.weight,
        _fuse(attention.q_proj, attention.k_proj, attention.v_proj),
        _fuse(attention.o_proj),
        layer.post_attention_layernorm.weight,
        _fuse(mlp.gate_proj, mlp.up_proj),
        _fuse(mlp.down_proj),
        mlp.act_fn,
    )


@torch.inference_mode(False)
def _fuse(*linears: nn.Linear) -> Tensor:
    """One matrix `(sum of out, in)` of several, which become views of it, so that nothing is held twice."""
    if any(linear.bias is not None for linear in linears):
        raise ValueError("the engine runs LLaMA decoders without biases; this one has some (attention_bias, mlp_bias)")
    weights = [linear.weight.data for linear in linears]
    rows = [len(weight) for weight in weights]
    base, end = weights[0], weights[0].data_ptr()
    for weight in weights:
        adjacent = weight.data_ptr() == end and weight.untyped_storage().data_ptr() == base.untyped_storage().data_ptr()
        end = weight.data_ptr() + weight.nbytes if adjacent else -1
    if end >= 0 and all(weight.is_contiguous() for weight in weights):  # another engine has done it
        return base.as_strided((sum(rows), base.shape[1]), base.stride())
    fused = torch.cat(weights)
    for linear, part in zip(linears, fused.split(rows), strict=True):
        linear.weight.data = part
    return fused
