"""What the platform counts and times, each once and by its name, for Prometheus.

Ray serves them at each node's metrics port with `ray_` before the name, and with the deployment and the replica as further
tags. Beside these there are Ray Serve's own, of queues and replicas: `ray_serve_deployment_queued_queries`,
`ray_serve_replica_processing_queries`, `ray_serve_num_grpc_requests_total`.
"""

from __future__ import annotations

import time
from collections import defaultdict

from ray.serve.metrics import Counter, Gauge, Histogram

_SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300]
_SIZES = [1, 2, 4, 8, 16, 32, 64, 128]

CALLS = Counter("ferret_calls", description="RPCs by method and status.", tag_keys=("method", "code"))
CALL_SECONDS = Histogram(
    "ferret_call_seconds", description="RPCs, to the end of their streams.", boundaries=_SECONDS, tag_keys=("method",)
)
FIRST_TOKEN_SECONDS = Histogram(
    "ferret_first_token_seconds", description="From a question to the first token.", boundaries=_SECONDS, tag_keys=("model",)
)
BETWEEN_TOKENS_SECONDS = Histogram(
    "ferret_between_tokens_seconds", description="From one token to the next.", boundaries=_SECONDS, tag_keys=("model",)
)
ANSWER_TOKENS_PER_SECOND = Histogram(
    "ferret_answer_tokens_per_second",
    description="Tokens a second of an answer that is over, from its first token on.",
    boundaries=[1, 2, 5, 10, 20, 50, 100, 200, 500],
    tag_keys=("model",),
)
TOKENS = Counter("ferret_tokens", description="Tokens read (prompt) and written (answer).", tag_keys=("model", "kind"))
STAGE_SECONDS = Histogram(
    "ferret_stage_seconds",
    description="Encoding an image or its regions, queue included.",
    boundaries=_SECONDS,
    tag_keys=("model", "stage"),
)
REPLICAS_LOST = Counter(
    "ferret_replicas_lost", description="Replicas that went away under a request.", tag_keys=("model", "stage")
)
TOKENS_IN_USE = Gauge("ferret_tokens_in_use", description="Tokens that the streams of a decoder hold, prompts included.")
CACHE_IN_USE = Gauge("ferret_cache_in_use", description="Share of a decoder's memory for keys and values that streams hold.")
DECODER_BATCH_SIZE = Histogram("ferret_decoder_batch_size", description="Streams in a step of a decoder.", boundaries=_SIZES)
ENCODER_BATCH_SIZE = Histogram(
    "ferret_encoder_batch_size", description="Pictures that an encoder computes at a time.", boundaries=_SIZES
)
SAMPLER_BATCH_SIZE = Histogram(
    "ferret_sampler_batch_size", description="Regions that a sampler computes at a time.", boundaries=_SIZES
)
PROMPT_TOKENS = Counter(
    "ferret_prompt_tokens", description="Tokens of prompts, and whether a decoder had read them before.", tag_keys=("kept",)
)
FEATURES = Counter(
    "ferret_features", description="Features needed, and whether they were kept from before.", tag_keys=("of", "kept")
)
STORE_UP = Gauge("ferret_store_up", description="Whether a server that keeps state can be reached.", tag_keys=("server",))
STORE_LOSSES = Counter("ferret_store_losses", description="How often a server that keeps state was lost.", tag_keys=("server",))


class Total:
    """Brings a counter to a number that only grows, and is kept elsewhere."""

    def __init__(self, counter: Counter) -> None:
        self._counter, self._counted = counter, defaultdict[str, float](float)

    def reaches(self, value: float, **tags: str) -> None:
        """What it has come to, by its tags."""
        key = str(sorted(tags.items()))
        if value > self._counted[key]:  # a counter refuses to grow by nothing
            self._counter.inc(value - self._counted[key], tags=tags)
            self._counted[key] = value


class TokenTimer:
    """Times the tokens of one answer, from when it is made."""

    def __init__(self, model: str) -> None:
        self._tags = {"model": model}
        self._first = self._last = time.monotonic()
        self._tokens = 0

    def tick(self) -> None:
        """Another one is there."""
        now = time.monotonic()
        (BETWEEN_TOKENS_SECONDS if self._tokens else FIRST_TOKEN_SECONDS).observe(now - self._last, tags=self._tags)
        self._first, self._last, self._tokens = self._first if self._tokens else now, now, self._tokens + 1

    def end(self) -> None:
        """There are no more."""
        if self._last > self._first:  # at least two
            ANSWER_TOKENS_PER_SECOND.observe((self._tokens - 1) / (self._last - self._first), tags=self._tags)
