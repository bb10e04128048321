"""Requests in, tokens out: many answers at once, each as it would be alone."""

from __future__ import annotations

import logging
import threading
import time
from collections import abc, deque
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch

from ferret_core.checkpoint.quantize import dequantize, has_8_bits
from ferret_core.cpu import kernels
from ferret_core.engine.blocks import BlockPool, blocks_for
from ferret_core.engine.cpu_runner import CpuRunner
from ferret_core.engine.cuda_graphs import CudaCapture
from ferret_core.engine.detokenizer import Detokenizer
from ferret_core.engine.drafter import Drafter
from ferret_core.engine.prompt import Prompt
from ferret_core.engine.runner import ModelRunner, fastest_attention
from ferret_core.engine.sampling import SamplingParams, choose
from ferret_core.engine.scheduler import Chunk, Scheduler
from ferret_core.engine.sequence import Delta, Receiver, Sequence
from ferret_core.model import FerretForConditionalGeneration

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How much an engine takes on at once. Raises `ValueError` naming the setting that is out of range."""

    cache_tokens: int = 8192
    """Positions whose keys and values there is memory for, rounded up to whole blocks."""
    block_size: int = 16
    """Positions of a block, the unit of memory and of what is found again; rounded up to what the attention takes."""
    step_tokens: int = 512
    """Positions of a step: a larger one reads prompts faster, a smaller one lets running answers wait less for them."""
    max_running: int = 64
    """Answers that go on in the same step."""
    max_waiting: int = 1024
    """Requests that may wait for their turn."""
    quantization: Literal["int8"] | None = None
    """Of the decoder's weights, on a CPU whose kernels have it; what a checkpoint of 8 bits gets there anyway."""

    def __post_init__(self) -> None:
        for name in ("cache_tokens", "block_size", "step_tokens", "max_running", "max_waiting"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.max_running > self.step_tokens:
            raise ValueError(f"max_running: {self.max_running} answers do not fit a step of step_tokens = {self.step_tokens}")

    @property
    def blocks(self) -> int:
        """Of the cache."""
        return blocks_for(self.cache_tokens, self.block_size)


class Runner(Protocol):
    """What computes a step."""

    context_length: int
    """Positions that can be looked back on."""
    vocabulary: int
    """Tokens that there are."""
    free_positions: int
    """Of a step, that together take no longer than one: what is guessed fills them."""

    def run(self, chunks: abc.Sequence[Chunk]) -> torch.Tensor:
        """Logits `(C, vocabulary)` for the C tokens that the chunks choose."""


class Engine:
    """Decodes for many requests at once.

    Any thread may call anything. Whoever calls `step` computes, and tells the receivers of all requests.
    """

    def __init__(self, runner: Runner, tokenizer: Any, settings: EngineSettings) -> None:
        self.runner, self.tokenizer = runner, tokenizer
        self.pool = BlockPool(settings.blocks, settings.block_size)
        self.scheduler = Scheduler(
            self.pool, settings.step_tokens, settings.max_running, settings.max_waiting, runner.free_positions
        )
        self._numbers = _numbers(tokenizer, runner.vocabulary) if runner.free_positions > 1 else frozenset()
        self.failures = 0
        """Steps that failed, one after the other."""
        self._lock = threading.Lock()  # of the scheduler
        self._stepping = threading.Lock()

    @classmethod
    def for_model(cls, model: FerretForConditionalGeneration, tokenizer: Any, settings: EngineSettings | None = None) -> Engine:
        """An engine for a Ferret's decoder, with memory for its keys and values, on what is fastest for it on this machine.

        Raises:
            ValueError: the quantization is not to be had here.
        """
        settings = settings or EngineSettings()
        on_kernels = CpuRunner.runs(model)
        as_they_are = on_kernels and has_8_bits(model)  # the kernels take the integers
        if not as_they_are:
            dequantize(model)
        if settings.quantization and not on_kernels:
            raise ValueError(
                f"quantization: {settings.quantization} needs a bfloat16 model whose widths are multiples of {kernels.PANEL}, "
                "on a CPU with AVX512-BF16, and the package installed where there was a C++ compiler"
            )
        attention = fastest_attention(model)
        multiple = kernels.BLOCK if on_kernels else attention.block_multiple
        size = multiple * blocks_for(settings.block_size, multiple)
        settings = replace(settings, block_size=size)
        if on_kernels:
            precision = settings.quantization or ("int8" if as_they_are else "bfloat16")
            own = CpuRunner(model, settings.blocks, size, precision)
            return cls(own, tokenizer, settings)
        capture = CudaCapture(model.device) if model.device.type == "cuda" else None
        runner = ModelRunner(model, settings.blocks, size, attention, capture, settings.max_running)
        return cls(runner, tokenizer, settings)

    @property
    def tokens_in_use(self) -> int:
        """Of all prompts and answers that run or wait."""
        with self._lock:
            return sum(map(len, (*self.scheduler.running, *self.scheduler.waiting)))

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        receiver: Receiver,
        answer: abc.Sequence[int] = (),
        deadline: float = float("inf"),
    ) -> Sequence:
        """Asks for an answer.

        Args:
            prompt: what to go on from.
            params: how to choose tokens, and when to end.
            receiver: is told every delta, the last of which has a `finish_reason`, or the exception that ended it.
            answer: tokens that the answer begins with, of a stream that was broken off; this one is the rest of it.
            deadline: by `time.monotonic()`; a request that is not done by then ends with a `TimeoutError`.

        Raises:
            QueueFullError: too many wait already.
            ValueError: the prompt with its answer fits neither the model's context nor the cache, has unknown tokens, or is
                answered already.
        """
        drafter = Drafter(self._numbers) if self.runner.free_positions > 1 else None
        sequence = Sequence(prompt, params, Detokenizer(self.tokenizer, params.stop), receiver, answer, deadline, drafter)
        if sequence.most_positions > self.runner.context_length:
            raise ValueError(
                f"prompt and answer: up to {sequence.most_positions} tokens, but the model looks back on "
                f"{self.runner.context_length}; ask for fewer than max_new_tokens = {params.max_new_tokens}"
            )
        if (unknown := self._unknown_token(sequence)) is not None:
            raise ValueError(f"there is no token {unknown}: the model has {self.runner.vocabulary}")
        ended = {self.tokenizer.eos_token_id, *params.stop_token_ids} & {*answer[-1:]}
        if ended or sequence.detokenizer.stopped or len(answer) >= params.max_new_tokens:
            raise ValueError(f"answer: its {len(answer)} tokens are all of it")
        with self._lock:
            self.scheduler.add(sequence)
        return sequence

    def _unknown_token(self, sequence: Sequence) -> int | None:
        """One that has no embedding."""
        ids = np.asarray(sequence.token_ids, np.int64)
        unknown = (ids < 0) | (ids >= self.runner.vocabulary)
        for segment in sequence.prompt.segments:
            unknown[segment.start : segment.start + segment.length] = False
        return int(ids[unknown][0]) if unknown.any() else None

    def cancel(self, sequence: Sequence) -> None:
        """Ends a request before the next step; its receiver hears no more."""
        sequence.cancelled = True

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams,
        answer: abc.Sequence[int] = (),
        deadline: float = float("inf"),
    ) -> abc.Iterator[Delta]:
        """The answer to one prompt, computed by whoever iterates. Arguments and errors as for `submit`."""
        received: deque[Delta | Exception] = deque()
        sequence = self.submit(prompt, params, received.append, answer, deadline)
        try:
            while True:
                while not received:
                    self.step()
                if isinstance(delta := received.popleft(), Exception):
                    raise delta
                yield delta
                if delta.finish_reason:
                    return
        finally:
            self.cancel(sequence)

    def drain(self) -> None:
        """Steps until there is nothing left to do."""
        while self.step():
            pass

    def step(self) -> int:
        """Computes the next position of every running answer and some positions of prompts; returns of how many sequences.

        A step that fails ends the sequences it was to compute, and no others.
        """
        with self._stepping:
            with self._lock:
                told = self._drop()
                chunks = self.scheduler.next_step()
            if chunks:
                told += self._compute(chunks)
            for sequence, delta in told:
                if not sequence.cancelled:
                    sequence.receiver(delta)
        return len(chunks)

    def abort(self, error: Exception) -> None:
        """Ends all requests, after the step that is being computed."""
        with self._stepping, self._lock:
            ended = [*self.scheduler.running, *self.scheduler.waiting]
            for sequence in ended:
                self.scheduler.remove(sequence)
        for sequence in ended:
            sequence.receiver(error)

    def _drop(self) -> list[tuple[Sequence, Delta | Exception]]:
        """Lets go of the sequences that nobody wants any more, or not any longer."""
        now = time.monotonic()
        late: list[tuple[Sequence, Delta | Exception]] = []
        for sequence in [*self.scheduler.running, *self.scheduler.waiting]:
            if sequence.cancelled or sequence.deadline < now:
                self.scheduler.remove(sequence)
                late.append((sequence, TimeoutError(f"the deadline passed after {sequence.answered} tokens of the answer")))
        return late  # of which those that were cancelled hear nothing

    def _compute(self, chunks: list[Chunk]) -> list[tuple[Sequence, Delta | Exception]]:
        """Runs the chunks; what their receivers are to be told."""
        try:
            chosen = _choose(self.runner.run(chunks), chunks)
        except Exception as error:
            logger.exception("a step failed")
            self.failures += 1
            with self._lock:
                for chunk in chunks:
                    self.scheduler.remove(chunk.sequence)
            return [(chunk.sequence, error) for chunk in chunks]
        self.failures = 0
        with self._lock:
            told = [(chunk.sequence, self._finish(chunk, tokens)) for chunk, tokens in zip(chunks, chosen, strict=True)]
        return [(sequence, delta) for sequence, deltas in told for delta in deltas]

    def _finish(self, chunk: Chunk, chosen: list[int | Exception]) -> list[Delta | Exception]:
        """Takes what was chosen after a chunk, up to the end of the answer."""
        sequence, told = chunk.sequence, list[Delta | Exception]()
        try:
            for token in chosen:
                if isinstance(token, Exception):
                    raise token
                told.append(delta := sequence.append(token, self.tokenizer.eos_token_id))
                if delta.finish_reason:
                    break
        except Exception as error:
            self.scheduler.remove(sequence)
            return [*told, error]
        guessed_right = max(0, len(told) - 1)
        self.scheduler.accepted_tokens += guessed_right
        self.scheduler.finish(Chunk(sequence, chunk.length - len(chunk.draft) + guessed_right))
        if told and delta.finish_reason:
            self.scheduler.remove(sequence)
        return told


def _numbers(tokenizer: Any, vocabulary: int) -> frozenset[int]:
    """The tokens that are digits."""
    texts = (tokenizer.convert_ids_to_tokens(token) or "" for token in range(vocabulary))  # the model may know more of them
    return frozenset(token for token, text in enumerate(texts) if text.strip("▁").isdigit())


def _choose(logits: torch.Tensor, chunks: list[Chunk]) -> list[list[int | Exception]]:
    """The next tokens of each chunk's sequence, by its rows of `logits`: one, and one more after each that was guessed right.

    An error where logits are no numbers. What is chosen is what would be chosen without guesses.
    """
    likeliest, finite = logits.argmax(-1).tolist(), logits.isfinite().all(-1).tolist()
    chosen: list[list[int | Exception]] = []
    row = 0
    for chunk in chunks:
        sequence, params, tokens = chunk.sequence, chunk.sequence.params, list[int | Exception]()
        for at, guess in zip(range(row, row + chunk.choices), (*chunk.draft, None), strict=False):
            if not finite[at]:
                tokens.append(FloatingPointError("the model computes what is not a number"))
            elif params.temperature or params.repetition_penalty != 1:
                before = [*sequence.token_ids, *chunk.draft[: len(tokens)]] if params.repetition_penalty != 1 else ()
                tokens.append(choose(logits[at], params, sequence.answered + len(tokens), before))
            else:
                tokens.append(likeliest[at])
            if tokens[-1] != guess:
                break
        row += chunk.choices
        chosen.append(tokens)
    return chosen
