"""What came of a load: in numbers, for people, and drawn."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from services.load_generator import Load, Outcome

_PERCENTILES = (50, 90, 95, 99)


def summarize(load: Load, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Counts, rates and percentiles of the outcomes after the warm-up; milliseconds."""
    counted = [outcome for outcome in outcomes if outcome.due >= load.warmup]
    answered = [outcome for outcome in counted if not outcome.error]
    end = max((outcome.end for outcome in counted), default=load.warmup + load.seconds)
    elapsed = max(end, load.warmup + load.seconds) - load.warmup
    gaps = [b - a for outcome in answered for a, b in zip(outcome.events, outcome.events[1:], strict=False)]
    return {
        "mode": f"open loop, {load.rate:g} a second" if load.rate else f"closed loop, {load.users} users",
        "seconds": round(elapsed, 1),
        "asked": len(counted),
        "answered": len(answered),
        "errors": dict(Counter(outcome.error for outcome in counted if outcome.error)),
        "answers_per_second": round(len(answered) / elapsed, 3),
        "tokens_per_second": round(sum(outcome.tokens for outcome in answered) / elapsed, 2),
        "milliseconds": {
            "first words": _percentiles([outcome.first - outcome.due for outcome in answered]),
            "between words": _percentiles(gaps),
            "whole answer": _percentiles([outcome.end - outcome.due for outcome in answered]),
        },
    }


def goodput(load: Load, outcomes: Sequence[Outcome], first: float, between: float) -> float:
    """Questions a second, after the warm-up, that were answered as well as people want it.

    Args:
        load: how much was asked.
        outcomes: what became of it.
        first: seconds after which the first words must be there.
        between: seconds from one piece of text to the next, on average over an answer.
    """

    def good(outcome: Outcome) -> bool:
        if outcome.error or not outcome.events or outcome.first - outcome.due > first:
            return False
        return outcome.events[-1] - outcome.first <= between * (len(outcome.events) - 1)

    return sum(good(outcome) for outcome in outcomes if outcome.due >= load.warmup) / load.seconds


def table(summary: dict[str, Any]) -> str:
    """What `summarize` found, for people."""
    columns = ["mean", *(f"p{p}" for p in _PERCENTILES)]
    return "\n".join(
        [
            f"{summary['mode']}: {summary['answered']} of {summary['asked']} answered in {summary['seconds']} s",
            f"{summary['answers_per_second']:g} answers and {summary['tokens_per_second']:g} tokens a second",
            *(f"{error}: {count}" for error, count in summary["errors"].items()),
            f"{'milliseconds':14}" + "".join(f"{column:>10}" for column in columns),
            *(
                f"{name:14}" + "".join(f"{values.get(column, math.nan):10.1f}" for column in columns)
                for name, values in summary["milliseconds"].items()
            ),
        ]
    )


def draw(load: Load, outcomes: Sequence[Outcome], path: Path) -> None:
    """Waiting over time, and how many waited how long. Raises `RuntimeError` without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise RuntimeError(f"{path} needs matplotlib: pip install 'ferret-platform[bench]'") from None
    answered = [outcome for outcome in outcomes if not outcome.error]
    failed = [outcome for outcome in outcomes if outcome.error]
    waits = {
        "first words": [(outcome.due, outcome.first - outcome.due) for outcome in answered],
        "whole answer": [(outcome.due, outcome.end - outcome.due) for outcome in answered],
    }
    figure = Figure(figsize=(10, 4), layout="constrained")
    over_time, shares = figure.subplots(1, 2)
    for name, points in waits.items():
        over_time.plot(*zip(*points, strict=True) if points else ([], []), ".", label=name)
        ordered = sorted(wait for due, wait in points if due >= load.warmup)
        shares.plot(ordered, [100 * (i + 1) / len(ordered) for i in range(len(ordered))], label=name)
    over_time.plot([outcome.due for outcome in failed], [outcome.end - outcome.due for outcome in failed], "rx", label="errors")
    over_time.axvspan(0, load.warmup, color="0.9")
    over_time.set(xlabel="asked at (s); grey: warm-up", ylabel="waited (s)", ylim=(0, None))
    shares.set(xlabel="waited at most (s)", ylabel="% of the questions", xlim=(0, None), ylim=(0, 100))
    for axes in (over_time, shares):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.suptitle(summarize(load, outcomes)["mode"], fontsize="medium")
    figure.savefig(path, dpi=110)


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """In milliseconds; the smallest value that so many percent do not exceed."""
    ordered = sorted(1000 * value for value in seconds if math.isfinite(value))
    if not ordered:
        return {}
    ranked = {f"p{p}": round(ordered[max(0, math.ceil(p / 100 * len(ordered)) - 1)], 1) for p in _PERCENTILES}
    return {"mean": round(fmean(ordered), 1), **ranked}
