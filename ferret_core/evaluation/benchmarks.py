"""The benchmarks, by name."""

from __future__ import annotations

from ferret_core.evaluation import (
    captioning,
    ferret_bench,
    flickr_entities,
    lvis_referring,
    playground,
    pointing,
    pointqa,
    pope,
    refexp,
    visual7w,
)
from ferret_core.evaluation.benchmark import Benchmark

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        playground.BENCHMARK,
        refexp.BENCHMARK,
        flickr_entities.BENCHMARK,
        captioning.BENCHMARK,
        lvis_referring.BENCHMARK,
        pope.BENCHMARK,
        pointqa.BENCHMARK,
        visual7w.BENCHMARK,
        ferret_bench.ANSWERS,
        ferret_bench.REVIEWS,
        pointing.ROBUSTNESS,
        pointing.NAMES,
        pointing.ROUND_TRIP,
    )
}
