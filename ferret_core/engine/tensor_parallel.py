"""Tensor parallelism: the decoder's layers divided among the processes ("ranks") of one machine, each with a GPU of its own.

A rank has H / R of the attention heads with their keys and values, and I / R of the inner width of the MLP; its share of a
layer's two outputs is added to those of the others. Embeddings, norms and head are whole on every rank.

Rank 0 is the process that has the engine. It sends every step to the others over pipes, as plain data, and then all compute
the same: `ModelRunner.run`. A rank ends with rank 0, whatever ends that one, and with a rank ends the runner: steps fail from
then on, and say why.

Ranks add up over NCCL where there is CUDA, over Gloo on CPUs.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import socket
import threading
from collections import abc
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Self, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ferret_core.checkpoint.quantize import dequantize
from ferret_core.engine.excerpt import excerpt
from ferret_core.engine.runner import ModelRunner
from ferret_core.engine.scheduler import Chunk
from ferret_core.model import FerretForConditionalGeneration

_TIMEOUT = timedelta(seconds=120)  # of one sum: a rank that takes longer hangs
_HOST = "127.0.0.1"
_END_SECONDS = 10.0  # that a rank has to end by itself
_LOAD_SECONDS = 1800

Load = abc.Callable[[], FerretForConditionalGeneration]


def shard(model: FerretForConditionalGeneration, rank: int, ranks: int) -> FerretForConditionalGeneration:
    """Leaves of a model, in place, what one rank computes; returns it.

    Raises:
        ValueError: heads, key heads or inner width cannot be divided evenly.
    """
    config = model.config.text_config
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if getattr(config, name) % ranks:
            raise ValueError(f"tensor parallelism: {ranks} ranks cannot share {name} = {getattr(config, name)} evenly")
    for layer in model.model.language_model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            _keep(linear, 0, rank, ranks)
        for linear in (attention.o_proj, mlp.down_proj):
            _keep(linear, 1, rank, ranks)
    return model


def _keep(linear: nn.Linear, dimension: int, rank: int, ranks: int) -> None:
    share = linear.weight.data.chunk(ranks, dimension)[rank]
    linear.weight.data = share.clone(memory_format=torch.contiguous_format)  # a view would hold all of it


@dataclass(frozen=True, slots=True)
class _Group:
    """What all ranks are told when they start."""

    load: Load
    ranks: int
    blocks: int
    block_size: int
    port: int
    """Where rank 0 listens on this machine, so that they find each other."""

    def join(
        self, rank: int, loaded: abc.Callable[[], object], listener: socket.socket | None = None
    ) -> tuple[FerretForConditionalGeneration, ModelRunner]:
        """A rank's share of the model, and its runner in the group of all, which it joins after a word to `loaded`.

        Rank 0 gives the socket that listens, which the group closes.
        """
        cuda, device = torch.cuda.is_available(), _device(rank)
        model = self.load()
        dequantize(model)
        shard(model, rank, self.ranks).to(device).eval()
        loaded()
        listening = listener.detach() if listener else None
        if cuda:
            torch.cuda.set_device(device)
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            store=dist.TCPStore(_HOST, self.port, self.ranks, rank == 0, _TIMEOUT, master_listen_fd=listening),
            rank=rank,
            world_size=self.ranks,
            timeout=_TIMEOUT,
            device_id=device if cuda else None,
        )
        return model, ModelRunner(model, self.blocks, self.block_size, all_reduce=dist.all_reduce)


class TensorParallelRunner:
    """Runs a Ferret's decoder on several ranks, of which this process is the first. It starts the others, and ends them.

    The ranks are torch.distributed's default group, so that a process has one of these at a time.
    """

    def __init__(
        self,
        load: Load,
        ranks: int,
        blocks: int,
        block_size: int,
        lost: abc.Callable[[str], object] = lambda reason: None,
    ) -> None:
        """
        Args:
            load: gives the whole decoder on the CPU. Every rank calls it, so that it must be picklable. A rank copies only its
                share: best from files that are mapped into memory, as `from_pretrained` does it.
            ranks: how many.
            blocks: of the cache.
            block_size: positions of a block.
            lost: is told why, on any thread and at most once, when the runner has become useless. A step that waits for a rank
                which is gone may go on to wait, over NCCL for two minutes: who has nothing else to do ends the process.

        Raises:
            ValueError: there are too few GPUs, or the model cannot be divided evenly.
            RuntimeError: a rank ended before it was ready.
        """
        if torch.cuda.is_available() and torch.cuda.device_count() < ranks:
            raise ValueError(f"tensor parallelism: {ranks} ranks need a GPU each, but there are {torch.cuda.device_count()}")
        self._failure, self._lost = "", lost
        self._watcher = threading.Thread(target=self._watch, name="ranks", daemon=True)
        listener = socket.create_server((_HOST, 0))
        group = _Group(load, ranks, blocks, block_size, listener.getsockname()[1])
        self._followers: list[_Follower] = []
        atexit.register(self.close)  # else those that end with this process seem lost
        try:
            for rank in range(1, ranks):
                self._followers.append(_Follower.start(rank, group))  # they load while this one does
            self.model, self._runner = group.join(0, self._wait_for_followers, listener)
        except BaseException:
            self.close()
            raise
        self.context_length, self.vocabulary = self._runner.context_length, self._runner.vocabulary
        self.free_positions = self._runner.free_positions

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @torch.inference_mode()
    def run(self, chunks: abc.Sequence[Chunk]) -> Tensor:
        """As `ModelRunner.run`.

        Raises:
            RuntimeError: a rank has ended, or the step failed on one of them, which ends all: they are not at the same point.
        """
        if self._failure:
            raise RuntimeError(f"tensor parallelism: {self._failure}")
        step = [excerpt(chunk, self.model.device, self.model.dtype) for chunk in chunks]
        try:
            for follower in self._followers:
                follower.pipe.send(step)
            return self._runner.run(step)
        except Exception as error:
            self._watcher.join(timeout=1)  # a rank may have ended just now
            self._lose(f"a step failed on rank 0: {error}")
            self.close()
            raise RuntimeError(f"tensor parallelism: {self._failure}") from error

    def close(self) -> None:
        """Ends the other ranks. To be called by who calls `run`, or after the last call."""
        atexit.unregister(self.close)
        self._failure = self._failure or "the runner is closed"
        for follower in self._followers:
            follower.pipe.close()
        for follower in self._followers:
            follower.end()
        if dist.is_initialized():
            dist.destroy_process_group()

    def _wait_for_followers(self) -> None:
        for follower in self._followers:
            follower.wait_until_ready()
        self._watcher.start()

    def _watch(self) -> None:
        """Waits for the first rank to end."""
        processes = {follower.process.sentinel: follower.process for follower in self._followers}
        process = processes[cast(int, wait(list(processes))[0])]
        process.join()
        self._lose(f"{process.name} ended with exit code {process.exitcode}")

    def _lose(self, reason: str) -> None:
        if not self._failure:
            self._failure = reason
            self._lost(reason)


@dataclass(frozen=True, slots=True)
class _Follower:
    """Another rank, as rank 0 sees it."""

    process: SpawnProcess
    pipe: Connection
    """Carries steps there, and first of all a word from there when the weights are loaded."""

    @classmethod
    def start(cls, rank: int, group: _Group) -> _Follower:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_follow, args=(theirs, rank, group), name=f"rank {rank}", daemon=True)
        process.start()
        theirs.close()  # else its end would go unnoticed
        return cls(process, ours)

    def wait_until_ready(self) -> None:
        try:
            if not self.pipe.poll(_LOAD_SECONDS):
                raise RuntimeError(f"tensor parallelism: {self.process.name} is not ready after {_LOAD_SECONDS} seconds")
            self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join(_END_SECONDS)
            reason = f"{self.process.name} ended with exit code {self.process.exitcode}; it said why"
            raise RuntimeError(f"tensor parallelism: {reason}") from None

    def end(self) -> None:
        self.process.join(_END_SECONDS)
        if self.process.is_alive():  # it waits for a rank that is gone
            self.process.kill()
            self.process.join()


def _follow(pipe: Connection, rank: int, group: _Group) -> None:
    """All that a rank but the first does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for rank 0
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _, runner = group.join(rank, lambda: pipe.send("ready"))
    while (step := _received(pipe)) is not None:
        runner.run(step)
    if dist.is_initialized():
        dist.destroy_process_group()


def _received(pipe: Connection) -> list[Chunk] | None:
    """The next step; None if rank 0 has closed the pipe."""
    try:
        return cast(list[Chunk], pipe.recv())
    except (EOFError, ConnectionError):
        return None


def _end_with_parent() -> None:
    """Also in the middle of a step, which would wait for rank 0."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _device(rank: int) -> torch.device:
    return torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
