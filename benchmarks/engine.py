"""The engine against others on the same weights: transformers one question at a time, its continuous batching, and vLLM.

python benchmarks/engine.py                          # random weights of SmolLM2-135M's shape
python benchmarks/engine.py --weights DIRECTORY      # any LLaMA checkpoint of transformers; smollm2.py makes one
python benchmarks/engine.py --vllm ~/vllm-env/bin/python              # vLLM too, in an environment that vllm_env.sh makes
python benchmarks/engine.py --device cuda --shape 7b

So many requests at once, each with a prompt of its own (cold), or with most of it in common and asked before (warm); then a
conversation's second turn. Greedy, all tokens. Each decodes in a process of its own (`decoders.py`), and while one has its
turn the others are stopped. Total is all tokens over the time from the first request to the last token; decode those that
came when every answer had begun, over the time from then on.
"""

from __future__ import annotations

import argparse
import math
import statistics
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from candidate import VLLM, Candidate, Run
from decoders import DECODERS
from engine_report import report
from measure import hardware, write_result
from roofline import decode_bytes, matmul_rate, memory_bandwidth, position_bytes, prefill_flops
from transformers import AutoModelForCausalLM, LlamaConfig

from ferret_core import cpu

SHAPES = {
    "135m": LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True, rope_theta=1e5,
    ),
    "7b": LlamaConfig(max_position_embeddings=2048),
}  # fmt: skip
PLAIN = "transformers, one at a time"


def median(values: list[float], digits: int = 3) -> float | None:
    """Of those that are numbers."""
    numbers = [value for value in values if not math.isnan(value)]
    return round(statistics.median(numbers), digits) if numbers else None


def figures(runs: list[Run]) -> dict[str, float | None]:
    return {
        "total, tokens/s": median([run.total for run in runs], 1),
        "decode, tokens/s": median([run.decode for run in runs], 1),
        "first token, s": median([run.first for run in runs]),
    }


class Prompts:
    """Draws them, the same for all."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary, self.generator = vocabulary, torch.Generator().manual_seed(0)

    def draw(self, length: int) -> list[int]:
        """Tokens that no prompt before had in this order."""
        return torch.randint(3, self.vocabulary, (length,), generator=self.generator).tolist()


def compare(candidates: list[Candidate], prompts: Prompts, count: int, options: argparse.Namespace) -> dict[str, Any]:
    """So many requests at once. Who takes longer than `--patience` for it has no further round."""
    cold: dict[str, list[Run]] = {candidate.name: [] for candidate in candidates}
    warm: dict[str, list[Run]] = {candidate.name: [] for candidate in candidates}
    common = prompts.draw(options.common)
    waiting = list(candidates)
    for _ in range(options.rounds):
        alone = [prompts.draw(options.prompt) for _ in range(count)]
        alike = [common + prompts.draw(options.prompt - options.common) for _ in range(count)]
        for candidate in [*waiting]:
            cold[candidate.name].append(candidate.ask(alone, options.tokens))
            candidate.ask([common], 1)
            warm[candidate.name].append(candidate.ask(alike, options.tokens))
            if cold[candidate.name][-1].seconds > options.patience:
                waiting.remove(candidate)
    row: dict[str, Any] = {}
    for name, runs in cold.items():
        # Of the rounds that both have answered; strict=False, for one may have had enough earlier.
        pairs = [
            pair
            for one, other in zip(cold.get(PLAIN, ()), runs, strict=False)
            for pair in zip(one.answers, other.answers, strict=True)
        ]
        row[name] = {
            "rounds": len(runs),
            "slowest, s": round(max(run.seconds for run in runs), 1),
            "cold": figures(runs),
            "warm": figures(warm[name]),
            "answers unlike those one at a time": f"{sum(one != other for one, other in pairs)} of {len(pairs)}",
        }
    return row


def second_turns(candidates: list[Candidate], prompts: Prompts, options: argparse.Namespace) -> dict[str, Any]:
    """First tokens of a conversation's two turns."""
    firsts: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    seconds: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    for _ in range(options.rounds):
        prompt, question = prompts.draw(options.prompt), prompts.draw(options.question)
        for candidate in candidates:
            turn = candidate.ask([prompt], options.tokens)
            firsts[candidate.name].append(turn.first)
            seconds[candidate.name].append(candidate.ask([prompt + turn.answers[0] + question], 1).first)
    return {
        name: {
            "first turn, s": median(firsts[name]),
            "second turn, s": median(seconds[name]),
            "share": median([second / first for first, second in zip(firsts[name], seconds[name], strict=True)]),
        }
        for name in firsts
    }


def shares(
    config: LlamaConfig, dtype: torch.dtype, row: dict[str, Any], peaks: dict[str, float], prompt: int, tokens: int
) -> Any:
    """Of what the machine could do at best, what each candidate reaches with one request."""
    floor = decode_bytes(config, prompt + tokens // 2, dtype) / peaks["memory, bytes/s"]
    work = prefill_flops(config, prompt) / peaks["matrices, FLOP/s"]
    cold = {name: found["cold"] for name, found in row.items()}
    return {
        "decode at best, tokens/s": round(1 / floor, 1),
        "prefill at best, s": round(work, 3),
        "reached": {
            name: {
                "decode": found["decode, tokens/s"] and round(found["decode, tokens/s"] * floor, 3),
                "prefill": round(work / found["first token, s"], 3),
            }
            for name, found in cold.items()
            if "int8" not in name  # the floors are of weights in dtype
        },
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--shape", default="135m", choices=SHAPES, help="of random weights")
    parser.add_argument("--weights", help="a checkpoint's directory in place of random weights")
    parser.add_argument("--vllm", metavar="PYTHON", help="interpreter of an environment that has vLLM")
    parser.add_argument("--candidates", nargs="+", choices=DECODERS, help="only these, and vLLM where --vllm is given")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 4, 16, 64], help="at once")
    parser.add_argument("--prompt", type=int, default=600, help="tokens of a prompt")
    parser.add_argument("--common", type=int, help="of these, those that the warm ones have in common; 14 of 15")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--question", type=int, default=36, help="tokens of the second turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--patience", type=float, default=100, help="seconds; who takes longer is asked no more, nor for more")
    options = parser.parse_args()
    options.common = options.common or options.prompt * 14 // 15
    if VLLM in (options.candidates or ()) and not options.vllm:
        parser.error(f"--candidates: {VLLM} needs --vllm PYTHON, the interpreter of an environment that has it")
    if options.tokens < 2 or not 0 < options.common < options.prompt:
        parser.error("--tokens: at least 2; --common: from 1 to less than --prompt")
    return options


def main() -> None:
    options = parse()
    torch.manual_seed(0)
    dtype = getattr(torch, options.dtype)
    int8 = options.device == "cpu" and dtype == torch.bfloat16 and cpu.available()
    default = [name for name in DECODERS if int8 or "int8" not in name]
    names = [name for name in options.candidates or default if name != VLLM]
    if options.vllm:
        names.append(VLLM)
    with ExitStack() as stack:
        weights = options.weights
        if not weights:
            weights = stack.enter_context(TemporaryDirectory())
            with torch.device(options.device):
                AutoModelForCausalLM.from_config(SHAPES[options.shape], dtype=dtype).save_pretrained(weights)
            torch.cuda.empty_cache()
        config = LlamaConfig.from_pretrained(weights)
        longest = options.prompt + 2 * options.tokens + options.question
        settings = {
            "weights": str(Path(weights).absolute()),
            "device": options.device,
            "dtype": options.dtype,
            "cache_tokens": (max(options.requests) + 1) * -(-longest // 128) * 128,  # blocks of up to 128
        }
        candidates = [stack.enter_context(Candidate.start(name, settings, options.vllm)) for name in names]
        peaks = {"memory, bytes/s": memory_bandwidth(options.device), "matrices, FLOP/s": matmul_rate(options.device, dtype)}
        torch.cuda.empty_cache()
        prompts = Prompts(config.vocab_size)
        for candidate in candidates:
            candidate.ask([prompts.draw(options.prompt)], 2)  # warms up
        follow_up = second_turns(candidates, prompts, options)
        print(follow_up, flush=True)
        rows, waiting = {}, candidates
        for count in sorted(options.requests):
            rows[str(count)] = row = compare(waiting, prompts, count, options)
            print(count, row, flush=True)
            waiting = [candidate for candidate in waiting if row[candidate.name]["slowest, s"] <= options.patience]
        memory = {candidate.name: candidate.memory for candidate in candidates}
    result = {
        "hardware": hardware(options.device),
        "weights": options.weights or f"random, {options.shape}",
        "dtype": options.dtype,
        "tokens": {name: getattr(options, name) for name in ("prompt", "common", "tokens", "question")},
        "requests": rows,
        "second turn": follow_up,
        "memory, bytes": memory | {"keys and values of a position": position_bytes(config, dtype)},
        "roofline": peaks | (shares(config, dtype, rows["1"], peaks, options.prompt, options.tokens) if "1" in rows else {}),
    }
    path = write_result(f"engine_{options.device}", result)
    print(path)
    report(path)


if __name__ == "__main__":
    main()
