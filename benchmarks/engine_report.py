"""A table and a picture of what `engine.py` measured.

python benchmarks/engine_report.py benchmarks/results/engine_cpu.json

The table goes beside the result, the picture to `docs/images/`; without matplotlib there is none.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PICTURES = Path(__file__).parents[1] / "docs" / "images"


def report(path: Path) -> None:
    """Of the result at `path`."""
    result = json.loads(path.read_text())
    table = path.with_suffix(".md")
    table.write_text("\n".join(lines(result)) + "\n")
    print(table)
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture: matplotlib is not installed")
        return
    picture = PICTURES / f"{path.stem}.png"
    draw(Figure(figsize=(10, 4), layout="constrained"), result).savefig(picture, dpi=110)
    print(picture)


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The table's, in Markdown."""
    machine, tokens, requests = result["hardware"], result["tokens"], result["requests"]
    memory, roofline = result["memory, bytes"], result["roofline"]
    yield f"# The engine on {machine.get('gpu') or machine['cpu']}"
    yield ""
    yield f"{machine['threads']} threads, torch {machine['torch']}; weights: {result['weights']}, {result['dtype']}. Prompts of"
    yield f"{tokens['prompt']} tokens, warm ones with {tokens['common']} of them in common and asked before, answers of"
    yield f"{tokens['tokens']}. Cells: tokens/s in all / while decoding / median seconds to the first token."
    yield "–: not asked, for it took too long with fewer."
    yield ""
    yield _row("requests at once", *requests)
    yield "|---" * (1 + len(requests)) + "|"
    for name in result["second turn"]:
        for state in ("cold", "warm"):
            yield _row(f"{name}, {state}", *(_cell(row[name][state]) if name in row else "–" for row in requests.values()))
    yield ""
    yield _row(
        "", "first token of a second turn", "of the first's time", "memory, loaded / at most", "floor reached: decode / prefill"
    )
    yield "|---" * 5 + "|"
    for name, turn in result["second turn"].items():
        held = f"{_mib(memory[name]['loaded'])} / {_mib(memory[name]['peak'])}"
        if "device peak" in memory[name]:
            held += f", GPU {_mib(memory[name]['device peak'])}"
        reached = roofline.get("reached", {}).get(name, {"decode": None, "prefill": None})
        share = f"{_percent(reached['decode'])} / {_percent(reached['prefill'])}"
        yield _row(name, f"{turn['second turn, s']} s", _percent(turn["share"]), held, share)
    yield ""
    yield f"Keys and values of a position: {memory['keys and values of a position']:,} bytes. The machine's memory:"
    bandwidth, rate = roofline["memory, bytes/s"] / 1e9, roofline["matrices, FLOP/s"] / 1e9
    yield f"{bandwidth:.1f} GB/s; products of matrices: {rate:.0f} GFLOP/s."
    if "reached" in roofline:
        decode, prefill = roofline["decode at best, tokens/s"], roofline["prefill at best, s"]
        yield f"One request's floors by these: {decode} tokens/s, and {prefill} s to the first token."


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(found: dict[str, float | None]) -> str:
    return " / ".join("–" if value is None else str(value) for value in found.values())


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def draw(figure: Any, result: dict[str, Any]) -> Any:
    """Throughput and time to the first token by the number of requests."""
    requests = result["requests"]
    panels = {
        "total, tokens/s": "tokens/s, in all",
        "decode, tokens/s": "tokens/s, decoding",
        "first token, s": "first token (s)",
    }
    for axes, (figure_name, label) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for number, name in enumerate(result["second turn"]):
            for state, style in (("cold", "o-"), ("warm", "o:")):
                points = [(int(count), row[name][state][figure_name]) for count, row in requests.items() if name in row]
                axes.plot(*zip(*points, strict=True), style, color=f"C{number}", markersize=4, label=f"{name}, {state}")
        counts = [int(count) for count in requests]
        axes.set(xscale="log", xlabel="requests at once", ylabel=label)
        axes.set_xticks(counts, counts)
        axes.set_xticks([], minor=True)
        if figure_name == "first token, s":
            axes.set_yscale("log")
        else:
            axes.set_ylim(0)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    return figure


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        report(Path(argument))
