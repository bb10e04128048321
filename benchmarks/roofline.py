"""What the machine could do at best, measured, and what a decoder asks of it.

python benchmarks/roofline.py [--device cuda]

An answer alone reads all weights for every token: memory sets its floor. A prompt uses each weight for all its positions:
arithmetic sets that one's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from measure import hardware
from transformers import LlamaConfig, LlamaForCausalLM


def best_seconds(run: Callable[[], object], device: str, rounds: int = 7) -> float:
    """Of the fastest of some rounds; the first two warm up."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds[2:])


def memory_bandwidth(device: str) -> float:
    """Bytes a second: on a CPU those read of an array far larger than its caches, on a GPU read and written by a copy."""
    array = torch.ones(2**28 if device == "cpu" else 2**30, dtype=torch.float32, device=device)
    if device == "cpu":
        return array.nbytes / best_seconds(array.sum, device)
    target = torch.empty_like(array)
    return 2 * array.nbytes / best_seconds(lambda: target.copy_(array), device)


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations a second in a product of two large square matrices."""
    size = 2048 if device == "cpu" else 8192
    left, right = torch.randn(2, size, size, device=device).to(dtype)
    return 2 * size**3 / best_seconds(lambda: left @ right, device)


def decode_bytes(config: LlamaConfig, positions: int, dtype: torch.dtype) -> int:
    """What must be read for a token: weights, each once, but for one row of the embeddings, and what is looked back on."""
    layers, head = _weights(config)
    return dtype.itemsize * (layers + head) + positions * position_bytes(config, dtype)


def position_bytes(config: LlamaConfig, dtype: torch.dtype) -> int:
    """Keys and values of one position."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize


def prefill_flops(config: LlamaConfig, positions: int) -> float:
    """Floating-point operations of a prompt, the last position of which alone passes the head."""
    layers, head = _weights(config)
    pairs = positions * (positions + 1) / 2
    attention = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * pairs
    return 2 * (layers * positions + head) + attention


def _weights(config: LlamaConfig) -> tuple[int, int]:
    """How many the layers and the head have."""
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    return sum(weight.numel() for weight in model.model.layers.parameters()), model.lm_head.weight.numel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    device = parser.parse_args().device
    print(hardware(device))
    print(f"memory: {memory_bandwidth(device) / 1e9:.1f} GB/s")
    for dtype in (torch.float32, torch.bfloat16):
        print(f"matrices, {dtype}: {matmul_rate(device, dtype) / 1e9:.0f} GFLOP/s")


if __name__ == "__main__":
    main()
