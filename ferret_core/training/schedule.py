"""The learning rate over a run, as a share of its peak."""

from __future__ import annotations

import math

from ferret_core.training.config import ScheduleConfig


def learning_rate_factor(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """Share of the peak learning rate, in [0, 1], at `step` (from 0) of `steps`."""
    warmup = _steps(schedule.warmup, steps)
    rise = (step + 1) / max(1.0, warmup)
    if schedule.name == "trapezoid":
        return max(0.0, min(1.0, rise, (steps - step) / max(1.0, _steps(schedule.decay, steps))))
    progress = (step - warmup) / max(1.0, steps - warmup)
    return min(1.0, rise) * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))


def _steps(value: float, steps: int) -> float:
    return value * steps if value < 1 else value
