"""The whole platform under open-loop load: its stages in processes of their own (split), and all in the gateway's (colocated).

python benchmarks/serving.py                            # two times 16 loads of 30 s on the bundled checkpoint: 25 minutes
python benchmarks/serving.py --seconds 5 --rates 1      # two minutes
python benchmarks/serving.py --model DIRECTORY          # any checkpoint; random regions, a question about each

Both are the same code behind the same proxy of Ray Serve, asked by the package's client at the same times the same questions,
which come at a rate whether or not they are answered. Regions are never the same; pictures are new each time, or one of eight
that the platform has answered a question about before. Good is an answer whose first words come within `--first` seconds, and
the others `--between` seconds apart on average.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import math
import random
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from local_platform import serving
from matplotlib.figure import Figure
from measure import RESULTS, hardware, write_result

from ferret_core.data.playground import playground_example
from ferret_core.geometry import Box
from services.client import AsyncFerretClient
from services.load_generator import Load, Question, run
from services.load_report import goodput, summarize
from services.platform import set_ray_environment

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "serving.png"
REPEATED = 8
"""Pictures that are asked about again and again."""
WAITS = {"first words": "first token", "between words": "between tokens", "whole answer": "whole answer"}


def question(picture: int, regions: int, chance: random.Random) -> Question:
    """About so many boxes anywhere in a picture of the playground."""
    image = playground_example("test", picture).image
    width, height = image.size

    def box() -> Box:
        x, y = chance.uniform(0, 0.7) * width, chance.uniform(0, 0.7) * height
        return Box(x, y, x + chance.uniform(0.1, 0.3) * width, y + chance.uniform(0.1, 0.3) * height)

    names = ", ".join(f"[region{i}]" for i in range(regions))
    return Question(image, f"What is {names}?", [box() for _ in range(regions)])


async def asked_before(server: str, questions: Sequence[Question]) -> None:
    """Each of the questions is asked once."""
    async with AsyncFerretClient(server) as client:
        for each in questions:
            await client.set_image(each.image)
            await client.ask(each.text, each.regions, max_new_tokens=16)


def measure(server: str, options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """A row for each load on a platform. With the same seed, the same questions at the same times."""
    chance, fresh = random.Random(seed), itertools.count(REPEATED)
    rows: list[dict[str, Any]] = []
    asyncio.run(asked_before(server, [question(i, 1, chance) for i in range(REPEATED)]))
    for pictures, regions, rate in itertools.product(("repeated", "new"), options.regions, options.rates):
        load = Load(
            rate=rate, seconds=options.seconds, warmup=3, max_new_tokens=options.tokens, in_order=True, seed=len(rows) + seed
        )
        most = rate * (load.seconds + load.warmup)
        count = math.ceil(most + 5 * math.sqrt(most)) + 5  # none is asked twice
        numbers = (i % REPEATED if pictures == "repeated" else next(fresh) for i in range(count))
        questions = [question(number, regions, chance) for number in numbers]
        outcomes = asyncio.run(run(load, questions, lambda: AsyncFerretClient(server)))
        good = goodput(load, outcomes, options.first, options.between)
        row = {"pictures": pictures, "regions": regions, "rate": rate, "goodput": round(good, 3), **summarize(load, outcomes)}
        rows.append(row)
        print({name: row[name] for name in ("pictures", "regions", "rate", "goodput", "errors", "milliseconds")}, flush=True)
    return rows


def lost_by_splitting(rows: Mapping[str, Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Split by colocated, load by load: medians of waiting, and goodput; above 1 the split one waits longer, or does more."""
    compared = []
    for split, whole in zip(rows["split"], rows["colocated"], strict=True):
        waits = {
            WAITS[name]: _ratio(split["milliseconds"][name].get("p50"), whole["milliseconds"][name].get("p50"))
            for name in WAITS
        }
        load = {name: split[name] for name in ("pictures", "regions", "rate")}
        compared.append(load | waits | {"goodput": _ratio(split["goodput"], whole["goodput"])})
    return compared


def _ratio(value: float | None, other: float | None) -> float | None:
    return round(value / other, 2) if value is not None and other else None


def markdown(rows: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """A table; waiting in milliseconds, of 50 / 90 / 99 % of the answers."""
    columns = ["pictures", "regions", "rate", "platform", "goodput", *WAITS.values()]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for candidates in zip(*rows.values(), strict=True):
        for name, row in zip(rows, candidates, strict=True):
            waits = [
                " / ".join(f"{row['milliseconds'][wait].get(p, math.nan):.0f}" for p in ("p50", "p90", "p99")) for wait in WAITS
            ]
            values = [row["pictures"], row["regions"], f"{row['rate']:g}", name, f"{row['goodput']:g}", *waits]
            lines.append("| " + " | ".join(map(str, values)) + " |")
    return "\n".join(lines) + "\n"


def draw(rows: Mapping[str, Sequence[dict[str, Any]]], path: Path) -> None:
    """Waiting for the first words, and goodput, over the rate; a column for each kind of question."""
    kinds = list(dict.fromkeys((row["pictures"], row["regions"]) for row in rows["split"]))
    figure = Figure(figsize=(3 * len(kinds), 5), layout="constrained")
    axes = figure.subplots(2, len(kinds), sharex=True, sharey="row", squeeze=False)
    for column, (pictures, regions) in enumerate(kinds):
        waits, good = axes[:, column]
        for color, (name, all_rows) in enumerate(rows.items()):
            kind = [row for row in all_rows if (row["pictures"], row["regions"]) == (pictures, regions)]
            rates = [row["rate"] for row in kind]
            for percentile, style in (("p50", "o-"), ("p99", "s:")):
                seconds = [row["milliseconds"]["first words"].get(percentile, math.nan) / 1000 for row in kind]
                waits.plot(rates, seconds, style, color=f"C{color}", label=f"{name}, {percentile}", markersize=3)
            good.plot(rates, [row["goodput"] for row in kind], "o-", color=f"C{color}", label=name, markersize=3)
        good.axline((0, 0), slope=1, color="0.8", zorder=0)
        waits.set(title=f"{pictures} pictures, regions: {regions}", yscale="log")
        good.set(xlabel="questions a second")
        for each in (waits, good):
            each.grid(alpha=0.3)
    axes[0, 0].set_ylabel("first words after (s)")
    axes[1, 0].set(ylabel="good answers a second", ylim=(0, None))
    for each in axes[:, 0]:
        each.legend(fontsize="x-small")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="playground", help="a bundled checkpoint, a directory, or a name on the hub")
    parser.add_argument("--rates", type=float, nargs="+", default=[1, 2, 4, 8], help="questions a second")
    parser.add_argument("--regions", type=int, nargs="+", default=[1, 8], help="of a question")
    parser.add_argument("--seconds", type=float, default=30, help="of each load")
    parser.add_argument("--tokens", type=int, default=64, help="most of an answer")
    parser.add_argument(
        "--first", type=float, default=1.0, help="seconds after which the first words of a good answer are there"
    )
    parser.add_argument("--between", type=float, default=0.1, help="seconds between the others, on average over the answer")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    set_ray_environment(secrets.token_hex(32))  # Ray reads it once, when it is imported
    import colocated

    from services import app

    rows = {}
    for name, build in {"split": app.build, "colocated": colocated.build}.items():
        with mock.patch("services.app.build", build), serving({"models": {"model": {"path": options.model}}}) as server:
            print(name)
            rows[name] = measure(server, options, options.seed)
    draw(rows, PICTURE)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "serving.md").write_text(markdown(rows))
    result = {"hardware": hardware(), "options": vars(options), "split by colocated": lost_by_splitting(rows), "rows": rows}
    print(write_result("serving", result))


if __name__ == "__main__":
    main()
