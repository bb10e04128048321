"""What a running platform has, and what it has done: asked of Ray Serve, and read from its metrics."""

from __future__ import annotations

import urllib.request
from collections import defaultdict
from typing import Any

from services.platform import APPLICATION, set_ray_environment
from services.platform_state import PlatformState


def deployments(state: PlatformState) -> dict[str, dict[str, Any]]:
    """Status and replicas by deployment of a running platform, asked of Ray Serve itself."""
    set_ray_environment(state.ray_token)
    import ray
    from ray import serve

    ray.init(address=state.ray_address, logging_level="ERROR", log_to_driver=False)
    try:
        application = serve.status().applications[APPLICATION]
        return {
            name: {"status": deployment.status.value, "replicas": dict(deployment.replica_states)}
            for name, deployment in application.deployments.items()
        }
    finally:
        ray.shutdown()


def essentials(metrics_port: int) -> dict[str, float]:
    """What the metrics of a running platform come to. Raises `OSError` if they cannot be read."""
    from prometheus_client.parser import text_string_to_metric_families

    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=10) as page:
        families = text_string_to_metric_families(page.read().decode())
    sums: defaultdict[str, float] = defaultdict(float)
    for family in families:
        for sample in family.samples:
            name = sample.name.removeprefix("ray_").removesuffix("_total")
            if name == "ferret_calls" and sample.labels["code"] not in ("OK", "CANCELLED"):
                sums["failed calls"] += sample.value
            sums[name] += sample.value
    first = sums["ferret_first_token_seconds_count"]
    return {
        "calls": sums["ferret_calls"],
        "failed calls": sums["failed calls"],
        "answers": first,
        "seconds to the first token (mean)": round(sums["ferret_first_token_seconds_sum"] / first, 3) if first else 0.0,
        "tokens": sums["ferret_tokens"],
        "tokens in use": sums["ferret_tokens_in_use"],
        "replicas lost": sums["ferret_replicas_lost"],
    }
