"""Replicas over time, before, under and after a load: the platform grows, shrinks, and ends at none.

python benchmarks/autoscaling.py [--users 8] [--seconds 60]
"""

import argparse
import asyncio
import threading
import time
from pathlib import Path

from local_platform import serving
from matplotlib.figure import Figure
from measure import hardware, write_result

from services.client import AsyncFerretClient
from services.load_generator import Load, playground_questions, run
from services.load_report import summarize

STAGE = {"max_replicas": 3, "upscale_delay_seconds": 2, "downscale_delay_seconds": 10}
SETTINGS = {
    "models": {
        "playground": {
            "path": "playground",
            "image_encoder": {"min_replicas": 0, "target_ongoing_requests": 2, **STAGE},
            "region_sampler": {"min_replicas": 0, "target_ongoing_requests": 2, **STAGE},
            "llm_decoder": {"min_replicas": 0, "target_tokens": 1000, **STAGE},
        }
    }
}
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "autoscaling.png"


def replicas() -> dict[str, int]:
    """Running replicas by deployment."""
    from ray import serve

    deployments = serve.status().applications["ferret"].deployments
    return {name: status.replica_states.get("RUNNING", 0) for name, status in deployments.items() if name != "gateway"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--before", type=float, default=15)
    parser.add_argument("--after", type=float, default=60)
    options = parser.parse_args()
    load = Load(users=options.users, seconds=options.seconds, warmup=0)
    history: list[dict] = []
    done = threading.Event()

    def watch(start: float) -> None:
        while not done.wait(0.5):
            history.append({"seconds": round(time.monotonic() - start, 1), **replicas()})

    with serving(SETTINGS) as server:
        start = time.monotonic()
        watcher = threading.Thread(target=watch, args=(start,))
        watcher.start()
        time.sleep(options.before)
        began = time.monotonic() - start
        outcomes = asyncio.run(run(load, playground_questions(8), lambda: AsyncFerretClient(server)))
        ended = time.monotonic() - start
        time.sleep(options.after)
        done.set()
        watcher.join()

    figure = Figure(figsize=(9, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    seconds = [moment["seconds"] for moment in history]
    for name in history[0].keys() - {"seconds"}:
        above.step(seconds, [moment[name] for moment in history], where="post", label=name)
    above.set(ylabel="running replicas", yticks=range(4))
    above.axvspan(began, ended, color="0.93")
    above.legend(fontsize="small")
    below.plot([began + o.due for o in outcomes], [o.end - o.due for o in outcomes], ".", markersize=4)
    below.set(xlabel=f"seconds; grey: {options.users} users ask", ylabel="answer after (s)", ylim=(0, None))
    below.axvspan(began, ended, color="0.93")
    figure.savefig(PICTURE, dpi=110)

    grown = [moment for moment in history if moment["playground-llm-decoder"] == 3]
    result = {
        "hardware": hardware("cpu"),
        "settings": SETTINGS,
        "load": summarize(load, outcomes),
        "seconds from the first question to three decoders": round(grown[0]["seconds"] - began, 1) if grown else None,
        "seconds from the last answer to the last change": round(
            next(m["seconds"] for m in history[::-1] if {k: m[k] for k in m if k != "seconds"} != _last(history)) - ended, 1
        ),
        "at the end": _last(history),
        "history": history,
    }
    print({name: value for name, value in result.items() if name != "history"})
    print(write_result("autoscaling", result))


def _last(history: list[dict]) -> dict[str, int]:
    return {name: count for name, count in history[-1].items() if name != "seconds"}


if __name__ == "__main__":
    main()
