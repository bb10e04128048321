"""How many decoders there should be: as many as the tokens that their streams hold ask for.

A stream of 2,000 tokens takes more of a replica's memory and bandwidth than twenty of 50, so requests are the wrong measure
of a decoder. Encoders, samplers and gateways are scaled by requests, running and queued, as Ray Serve does by default.
"""

from __future__ import annotations

from typing import Any

from ray.serve.config import AutoscalingContext

TOKENS_IN_USE = "tokens_in_use"
"""What a decoder reports: the tokens of its streams, prompts included."""


class TokensPerReplica:
    """A policy of Ray Serve, which adds bounds and delays."""

    def __init__(self, target_tokens: int) -> None:
        """
        Args:
            target_tokens: of all streams of a replica together.
        """
        self.target_tokens = target_tokens

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """Replicas wanted, before rounding up. Requests that still wait count as much as those that run, on average."""
        if context.current_num_replicas == 0:  # Serve starts the first one by itself
            return context.target_num_replicas, {}
        tokens = sum((context.aggregated_metrics or {}).get(TOKENS_IN_USE, {}).values())
        running = context.total_running_requests
        each = tokens / running if running else self.target_tokens
        return (tokens + each * context.total_queued_requests) / self.target_tokens, {}
