"""Ways to decode, each in a process of its own, which `candidate.py` starts and asks over its standard input.

python benchmarks/decoders.py NAME '{"weights": DIRECTORY, "device": "cpu", "dtype": "bfloat16", "cache_tokens": 8192}'

It loads the weights and says so, then answers every line, `[prompts, tokens]`, with one that has the tokens of each prompt's
greedy answer, all as long, and when each was there, in seconds since it was asked. What is not a line of JSON goes to the
standard error. A decoder imports what it is about and nothing else, so that vLLM's can run where Ferret is not installed.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaForCausalLM
from transformers.utils import logging

NEVER = -1  # no token ends an answer: all are equally long

Answer = list[tuple[int, float]]
"""Tokens, each with the time it was there, by `time.perf_counter()`."""


class Decoder(Protocol):
    """What answers prompts."""

    def answer(self, prompts: list[list[int]], tokens: int) -> list[Answer]:
        """Greedy answers to prompts that come at once, in their order."""


def load(weights: str, device: str, dtype: str) -> LlamaForCausalLM:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return LlamaForCausalLM.from_pretrained(weights, dtype=getattr(torch, dtype)).to(device).eval()


class OneAtATime:
    """transformers' `generate`: a prompt waits for the answers to those before it."""

    def __init__(self, weights: str, device: str, dtype: str, cache_tokens: int) -> None:
        self.model = load(weights, device, dtype)

    def answer(self, prompts: list[list[int]], tokens: int) -> list[Answer]:
        """As `Decoder`."""
        return [self._generate(prompt, tokens) for prompt in prompts]

    def _generate(self, prompt: list[int], tokens: int) -> Answer:
        ids = torch.tensor([prompt], device=self.model.device)
        ends = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=NEVER, pad_token_id=0)
        streamer = Streamer()
        self.model.generate(ids, ends, attention_mask=torch.ones_like(ids), streamer=streamer)
        return streamer.received[len(prompt) :]


class Streamer:
    """Of `generate`: is given the prompt, then every token."""

    def __init__(self) -> None:
        self.received: Answer = []

    def put(self, ids: torch.Tensor) -> None:
        """Ids as they come."""
        now = time.perf_counter()
        self.received += [(token, now) for token in ids.flatten().tolist()]

    def end(self) -> None:
        """Nothing to do."""


class ContinuousBatching:
    """transformers' own, which decodes on a thread."""

    def __init__(self, weights: str, device: str, dtype: str, cache_tokens: int) -> None:
        limits = ContinuousBatchingConfig(num_blocks=-(-cache_tokens // 128), block_size=128, max_batch_tokens=512)
        greedy = GenerationConfig(do_sample=False, eos_token_id=NEVER, pad_token_id=0)
        self.manager = load(weights, device, dtype).init_continuous_batching(greedy, limits)
        self.manager.start()

    def answer(self, prompts: list[list[int]], tokens: int) -> list[Answer]:
        """As `Decoder`."""
        names = [self.manager.add_request(prompt, max_new_tokens=tokens, record_timestamps=True) for prompt in prompts]
        found: dict[str, Answer] = {}
        while len(found) < len(names):
            output = self.manager.get_result(timeout=1)
            if (output and output.error) or not self.manager.is_running():
                raise RuntimeError(f"continuous batching failed: {output.error if output else 'its thread ended'}")
            if output and output.is_finished():
                found[output.request_id] = list(zip(output.generated_tokens, output.timestamps, strict=True))
        return [found[name] for name in names]


class Ours:
    """`ferret_core.engine`; further arguments are those of `EngineSettings`."""

    def __init__(self, weights: str, device: str, dtype: str, cache_tokens: int, **settings: Any) -> None:
        from ferret_core.engine import Engine, EngineSettings
        from ferret_core.model import FerretConfig, FerretForConditionalGeneration

        model = load(weights, device, dtype)
        with torch.device("meta"):
            ferret = FerretForConditionalGeneration(FerretConfig(text_config=model.config), parts=("decoder",))
        ferret.model.language_model, ferret.lm_head = model.model, model.lm_head
        ferret.model.multi_modal_projector.to_empty(device=model.device)  # there is nothing to project
        self.engine = Engine.for_model(
            ferret.eval(),
            Text(),
            EngineSettings(cache_tokens=cache_tokens, step_tokens=4096 if device == "cuda" else 512, **settings),
        )

    def answer(self, prompts: list[list[int]], tokens: int) -> list[Answer]:
        """As `Decoder`."""
        from ferret_core.engine import Prompt, SamplingParams

        answers: list[Answer] = [[] for _ in prompts]
        for prompt, answer in zip(prompts, answers, strict=True):

            def receive(delta: Any, answer: Answer = answer) -> None:
                if isinstance(delta, Exception):
                    raise delta
                answer.append((delta.token_id, time.perf_counter()))

            self.engine.submit(Prompt(tuple(prompt)), SamplingParams(max_new_tokens=tokens), receive)
        self.engine.drain()
        return answers


class Text:
    """A tokenizer that costs nothing: decoding is compared, not text."""

    eos_token_id = NEVER
    all_special_ids = ()

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool) -> str:
        """One letter for each token."""
        return "x" * len(tokens)

    def convert_ids_to_tokens(self, token: int) -> str:
        """The letter."""
        return "x"


class VLLM:
    """vLLM's engine in this very process, on all threads: left to itself, its CPU build keeps a core free for its scheduler."""

    def __init__(self, weights: str, device: str, dtype: str, cache_tokens: int) -> None:
        os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        import vllm

        config = json.loads((Path(weights) / "config.json").read_text())
        width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        position = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * width * getattr(torch, dtype).itemsize
        block = 32  # its CPU kernels want multiples of that
        self.engine = vllm.LLM(
            weights,
            dtype=dtype,
            skip_tokenizer_init=True,
            max_model_len=min(config["max_position_embeddings"], cache_tokens),
            block_size=block,
            kv_cache_memory_bytes=(cache_tokens + block) * position,  # one block is its own
        ).llm_engine
        self.asked = 0

    def answer(self, prompts: list[list[int]], tokens: int) -> list[Answer]:
        """As `Decoder`."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        greedy = SamplingParams(
            temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA
        )
        answers: dict[str, Answer] = {}
        for prompt in prompts:
            self.asked += 1
            answers[str(self.asked)] = []
            self.engine.add_request(str(self.asked), {"prompt_token_ids": prompt}, greedy)
        while self.engine.has_unfinished_requests():
            outputs, now = self.engine.step(), time.perf_counter()
            for output in outputs:
                answers[output.request_id] += [(token, now) for token in output.outputs[0].token_ids]
        return list(answers.values())


DECODERS: dict[str, Callable[..., Decoder]] = {
    "transformers, one at a time": OneAtATime,
    "transformers, continuous batching": ContinuousBatching,
    "vLLM": VLLM,
    "ours": Ours,
    "ours, int8": functools.partial(Ours, quantization="int8"),
}
"""By the name in the results."""


def memory(device: str) -> dict[str, int]:
    """Bytes: of this process now and at most, and of the device's memory at most where there is one."""
    status = dict(re.findall(r"(Vm\w+):\s+(\d+) kB", Path("/proc/self/status").read_text()))
    found = {"resident": 1024 * int(status["VmRSS"]), "peak": 1024 * int(status["VmHWM"])}
    return found | ({"device peak": torch.cuda.max_memory_reserved()} if device == "cuda" else {})


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print
    name, settings = sys.argv[1], json.loads(sys.argv[2])
    decoder = DECODERS[name](**settings)
    Path("/proc/self/clear_refs").write_text("5")  # what loading took at most does not count
    if settings["device"] == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    print(json.dumps(memory(settings["device"])), file=replies)
    for line in sys.stdin:
        prompts, tokens = json.loads(line)
        started = time.perf_counter()
        answers = decoder.answer(prompts, tokens)
        reply = {
            "answers": [[token for token, _ in answer] for answer in answers],
            "times": [[round(moment - started, 6) for _, moment in answer] for answer in answers],
            "memory": memory(settings["device"]),
        }
        print(json.dumps(reply), file=replies)


if __name__ == "__main__":
    main()
