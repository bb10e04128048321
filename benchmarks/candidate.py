"""A decoder in a process of its own: asked, and stopped while others have their turn."""

from __future__ import annotations

import json
import math
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

VLLM = "vLLM"


@dataclass(frozen=True)
class Run:
    """What became of some requests that came at once."""

    answers: list[list[int]]
    times: list[list[float]]
    """When each token was there, in seconds since they came."""

    @property
    def seconds(self) -> float:
        """To the last token."""
        return max(times[-1] for times in self.times)

    @property
    def first(self) -> float:
        """Median of the seconds to a first token."""
        return statistics.median(times[0] for times in self.times)

    @property
    def total(self) -> float:
        """Tokens a second."""
        return sum(map(len, self.times)) / self.seconds

    @property
    def decode(self) -> float:
        """Tokens a second when all have begun; NaN if none came then."""
        begun = max(times[0] for times in self.times)
        later = sum(moment > begun for times in self.times for moment in times)
        return later / (self.seconds - begun) if later else math.nan


class Candidate:
    """A decoder's process, which runs only while it is asked."""

    def __init__(self, name: str, python: str, settings: dict[str, Any], environment: Mapping[str, str] = os.environ) -> None:
        self.name = name
        script = str(Path(__file__).parent / "decoders.py")
        # A group of its own: whatever the decoder starts is stopped and ended with it, and ends when this process is killed.
        self.process = subprocess.Popen(
            [python, script, name, json.dumps(settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, process_group=0,
        )  # fmt: skip
        self.memory = {"loaded": self._reply()["resident"]}

    @classmethod
    def start(cls, name: str, settings: dict[str, Any], vllm: str | None = None) -> Self:
        """With as many threads as this process has; vLLM by the interpreter `vllm`, with the OpenMP that its manual names."""
        environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        if name != VLLM or not vllm:
            return cls(name, sys.executable, settings, environment)
        openmp = Path(vllm).parents[1] / "lib" / "libiomp5.so"
        return cls(name, vllm, settings, environment | ({"LD_PRELOAD": str(openmp)} if openmp.exists() else {}))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def ask(self, prompts: list[list[int]], tokens: int) -> Run:
        """The answers. Raises `RuntimeError` if the process ended, or answers are not as long as they should be."""
        assert self.process.stdin
        os.killpg(self.process.pid, signal.SIGCONT)
        with suppress(BrokenPipeError):  # the reply tells
            print(json.dumps([prompts, tokens]), file=self.process.stdin, flush=True)
        reply = self._reply()
        self.memory |= {name: size for name, size in reply["memory"].items() if name != "resident"}
        if any(len(answer) != tokens for answer in reply["answers"]):
            raise RuntimeError(f"{self.name}: answers have {[*map(len, reply['answers'])]} tokens instead of {tokens}")
        return Run(reply["answers"], reply["times"])

    def _reply(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name}: ended with {self.process.wait()}; its last words are above")
        os.killpg(self.process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)  # until it stands still
        return json.loads(line)
