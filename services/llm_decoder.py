"""The LLMDecoder deployment: the language model behind `ferret.v1.LLMDecoderService`."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial

from ferret.v1.llm_decoder_pb2 import DecodeRequest, DecodeResponse

from ferret_core.checkpoint.bundled import checkpoint_path
from ferret_core.engine import AsyncEngine, Engine, EngineSettings, Prompt, ferret_prompt
from ferret_core.engine.tensor_parallel import TensorParallelRunner
from ferret_core.model import FerretConfig, FerretProcessor
from services import autoscaling, metrics
from services.loading import load_model, load_part
from services.settings import ModelSettings
from services.stage_wire import delta_to_proto, sampling_from_proto, tensor_from_proto

logger = logging.getLogger("ray.serve")


class LLMDecoder:
    """Prompts to streams of text, all of them a token further with each step of the engine."""

    def __init__(self, settings: ModelSettings) -> None:
        sizes, path = settings.llm_decoder, checkpoint_path(settings.path)
        if sizes.cache_tokens < (longest := FerretConfig.from_pretrained(path).context_length):
            raise ValueError(
                f"llm_decoder.cache_tokens: {sizes.cache_tokens} tokens, but a single question to {settings.path} may take "
                f"{longest}"
            )
        limits = EngineSettings(
            cache_tokens=sizes.cache_tokens,
            step_tokens=sizes.step_tokens,
            max_running=min(sizes.max_ongoing_requests, sizes.step_tokens),
            max_waiting=sizes.max_ongoing_requests,
            quantization=sizes.quantization,
        )
        if sizes.tensor_parallel == 1:
            self.model, processor = load_part(settings, "decoder")
            self.engine = Engine.for_model(self.model, processor.tokenizer, limits)
        else:
            load, processor = partial(load_model, settings, "decoder"), FerretProcessor.from_pretrained(path)
            runner = TensorParallelRunner(load, sizes.tensor_parallel, limits.blocks, limits.block_size, lost=_end)
            self.model, self.engine = runner.model, Engine(runner, processor.tokenizer, limits)
        self.decoder = AsyncEngine(self.engine, metrics.DECODER_BATCH_SIZE.observe)
        self.prompt_tokens = metrics.Total(metrics.PROMPT_TOKENS)

    def check_health(self) -> None:
        """Raises if no answers are to be had here any more; Ray Serve then starts another replica."""
        self.decoder.check_health()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What `TokensPerReplica` goes by; Ray Serve asks for it all the time."""
        tokens, pool, scheduler = self.engine.tokens_in_use, self.engine.pool, self.engine.scheduler
        metrics.TOKENS_IN_USE.set(tokens)  # Ray forgets a gauge that is not set again
        metrics.CACHE_IN_USE.set(1 - pool.available / pool.count)
        self.prompt_tokens.reaches(scheduler.cached_tokens, kept="True")
        self.prompt_tokens.reaches(scheduler.prompt_tokens - scheduler.cached_tokens, kept="False")
        return {autoscaling.TOKENS_IN_USE: tokens}

    async def Decode(self, request: DecodeRequest) -> AsyncIterator[DecodeResponse]:  # noqa: N802 (the RPC's name)
        """Streams the answer to a prompt; a stream that is cancelled ends after the step it is in."""
        prompt = await asyncio.to_thread(self._prompt, request)
        async with aclosing(self.decoder.stream(prompt, sampling_from_proto(request.sampling), request.answer_ids)) as deltas:
            async for delta in deltas:
                yield delta_to_proto(delta)

    def _prompt(self, request: DecodeRequest) -> Prompt:
        features = tensor_from_proto(request.image_features)
        regions = tensor_from_proto(request.region_features) if request.HasField("region_features") else None
        return ferret_prompt(self.model, request.input_ids, features, regions)


def _end(reason: str) -> None:
    """Of a replica whose ranks are no longer complete, at once: its answers go on at another, as of any that is lost."""
    logger.critical("this decoder ends: %s", reason)
    os._exit(1)
