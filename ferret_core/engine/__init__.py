"""Decoding: from prompts to text, token by token, many at once.

A request's way: `engine.Engine.submit` makes it a `sequence.Sequence`; `scheduler.Scheduler` decides which of its positions the
next step computes and gets them blocks of `blocks.BlockPool`; `drafter.Drafter` fills what is free with guesses. On a CPU
`cpu_runner.CpuRunner` computes them in one call of our kernels; elsewhere `runner.ModelRunner` makes them a `batch.Batch` and
computes them, looking back through an `attention.Attention` (on a GPU, steps of `cuda_graphs.DecodeGraphs` are only replayed);
`sampling.choose` takes the next token, and `detokenizer.Detokenizer` makes it text.
`async_engine.AsyncEngine` does all that on a thread of its own; `tensor_parallel.TensorParallelRunner` runs on several GPUs.
"""

from ferret_core.engine.async_engine import AsyncEngine
from ferret_core.engine.engine import Engine, EngineSettings
from ferret_core.engine.prompt import Prompt, Segment, ferret_prompt
from ferret_core.engine.sampling import SamplingParams
from ferret_core.engine.scheduler import QueueFullError
from ferret_core.engine.sequence import Delta

__all__ = [
    "AsyncEngine",
    "Delta",
    "Engine",
    "EngineSettings",
    "Prompt",
    "QueueFullError",
    "SamplingParams",
    "Segment",
    "ferret_prompt",
]
