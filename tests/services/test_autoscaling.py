"""How many decoders the policy asks for. `benchmarks/autoscaling.py` shows it at work."""

from types import SimpleNamespace

import pytest
from ray.serve.config import AutoscalingConfig

from services.autoscaling import TokensPerReplica
from services.settings import DecoderSettings


def context(tokens=(), running=0, queued=0, current=1, target=1):
    metrics = {"tokens_in_use": dict(enumerate(tokens))} if tokens else {}
    return SimpleNamespace(
        aggregated_metrics=metrics,
        total_running_requests=running,
        total_queued_requests=queued,
        current_num_replicas=current,
        target_num_replicas=target,
    )


@pytest.mark.parametrize(
    ("state", "wanted"),
    [
        (context(), 0),
        (context([1000], running=1), 1),
        (context([1000, 500], running=3, current=2), 1.5),
        (context([1000], running=2, queued=2), 2),  # those that wait as those that run
        (context(queued=1), 1),  # nothing is known of it yet
        (context(current=0, target=0), 0),
        (context(current=0, target=2), 2),
    ],
)
def test_tokens_per_replica(state, wanted):
    assert TokensPerReplica(1000)(state) == (wanted, {})


def test_the_policy_is_serves():
    """Which looks it up by its name, and makes one with our settings."""
    config = AutoscalingConfig(**DecoderSettings(target_tokens=7).autoscaling())
    policy = config.policy.get_policy()
    assert (policy(7) if isinstance(policy, type) else policy).target_tokens == 7
