"""Many more questions than a platform takes: who is refused, how long the others wait, and what becomes of its memory.

python benchmarks/overload.py [--minutes 10] [--users 96]
"""

from __future__ import annotations

import argparse
import asyncio
import time
from bisect import bisect
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import psutil
from local_platform import serving
from measure import hardware, write_result

from services.client import AsyncFerretClient
from services.load_generator import Load, Outcome, playground_questions, run
from services.load_report import summarize

DECODER = {"max_ongoing_requests": 16, "max_queued_requests": 16}
SETTINGS = {"models": {"playground": {"path": "playground", "llm_decoder": DECODER}}}
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "overload.png"

Memory = list[dict[str, float]]
"""MiB of each replica, and when, in seconds since the load began."""


async def overload(server: str, replicas: Mapping[str, psutil.Process], load: Load) -> tuple[list[Outcome], Memory]:
    """What became of the questions, and the resident memory of the replicas meanwhile, once a second."""
    memory: Memory = []
    start = time.monotonic()

    async def watch() -> None:
        while True:
            sizes = {name: round(process.memory_info().rss / 2**20, 1) for name, process in replicas.items()}
            memory.append({"seconds": round(time.monotonic() - start, 1), **sizes})
            await asyncio.sleep(1)

    watching = asyncio.create_task(watch())
    try:
        outcomes = await run(load, playground_questions(8), lambda: AsyncFerretClient(server))
    finally:
        watching.cancel()
    return outcomes, memory


def growth(memory: Memory) -> dict[str, float]:
    """MiB by which each replica grew, from the second quarter of the time to the last one; the first one warms up."""
    quarter = len(memory) // 4
    early, late = memory[quarter : 2 * quarter], memory[-quarter:]
    return {
        name: round(median(moment[name] for moment in late) - median(moment[name] for moment in early), 1)
        for name in memory[0].keys() - {"seconds"}
    }


def served_meanwhile(outcomes: Sequence[Outcome], since: float = 0.0) -> list[int]:
    """For each answered question that was due from `since` seconds on, how many others got their first words while it waited
    for its own."""
    answered = [outcome for outcome in outcomes if not outcome.error]
    firsts = sorted(outcome.first for outcome in answered)
    return [bisect(firsts, outcome.first) - bisect(firsts, outcome.due) - 1 for outcome in answered if outcome.due >= since]


def draw(outcomes: Sequence[Outcome], memory: Memory) -> None:
    """Waiting and memory over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    answered = [outcome for outcome in outcomes if not outcome.error]
    for name, wait in (("whole answer", lambda o: o.end - o.due), ("first words", lambda o: o.first - o.due)):
        above.plot([o.due for o in answered], [wait(o) for o in answered], ".", markersize=2, label=name)
    above.set(ylabel="waited (s)", ylim=(0, None))
    for name in memory[0].keys() - {"seconds"}:
        below.plot([moment["seconds"] for moment in memory], [moment[name] for moment in memory], label=name)
    below.set(xlabel="seconds", ylabel="resident memory (MiB)", ylim=(0, None))
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", loc="lower right")
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--users", type=int, default=96)
    options = parser.parse_args()
    load = Load(users=options.users, seconds=60 * options.minutes, warmup=5, max_new_tokens=32)
    with serving(SETTINGS) as server:
        processes = {" ".join(process.cmdline()): process for process in psutil.Process().children(recursive=True)}
        names = {"gateway": ":gateway", "decoder": "-llm-decoder", "proxy": "ProxyActor"}
        replicas = {name: next(p for title, p in processes.items() if part in title) for name, part in names.items()}
        outcomes, memory = asyncio.run(overload(server, replicas, load))
    draw(outcomes, memory)
    result = {
        "hardware": hardware("cpu"),
        "settings": SETTINGS,
        "load": summarize(load, outcomes),
        "served while a question waited, at most": max(served_meanwhile(outcomes)),
        "MiB grown, second quarter to last": growth(memory),
        "memory": memory[:: max(1, len(memory) // 120)],
    }
    print({name: value for name, value in result.items() if name != "memory"})
    print(write_result("overload", result))


if __name__ == "__main__":
    main()
