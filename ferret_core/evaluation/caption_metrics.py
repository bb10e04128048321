"""METEOR, CIDEr and SPICE of captions, as COCO's evaluation computes them: by its own tools, where they are installed.

    pip install 'ferret-platform[evaluate]'                  pycocoevalcap: the tokenizer, METEOR and CIDEr
    apt install default-jre-headless                         Java, which the tokenizer, METEOR and SPICE run in
    python -m pycocoevalcap.spice.get_stanford_models        what SPICE parses with; SPICE wants Java 8 and 8 GB of memory

What is missing is said in a note, and there is no figure for it. Words are those of Stanford's PTB tokenizer, without
punctuation: without Java there is no CIDEr either, for other words make another number.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ferret_core.evaluation.benchmark import Figure, Joint, Prediction, Sums, Tally, ratio, share
from ferret_core.grounding import without_boxes

_STATISTICS = 23  # METEOR's, of a caption
_LENGTHS, _CHUNKS, _MATCHES = slice(0, 2), 20, slice(21, 23)  # among them: words of caption and reference, and those matched
_SPICE_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
_TOOLS = "METEOR, CIDEr and SPICE"
Captions = Mapping[str, Sequence[str]]
"""By picture, words divided by single spaces; of a model one for each picture."""


def caption_metrics(predictions: Sequence[Prediction]) -> Joint:
    """What the installed tools say of the captions of each group; a note about each tool that is not there or fails."""
    package = find_spec("pycocoevalcap")
    if package is None or not package.submodule_search_locations:
        return Joint(notes=(f"{_TOOLS}: not computed; pip install 'ferret-platform[evaluate]', which brings pycocoevalcap",))
    if not shutil.which("java"):
        return Joint(notes=(f"{_TOOLS}: not computed; install Java, as with apt install default-jre-headless",))
    root = Path(package.submodule_search_locations[0])
    figures = [
        Figure(name="METEOR", value=lambda sums: _meteor(root, sums)),
        Figure(name="CIDEr x 100", value=_hundred_times(ratio("CIDEr", "captions")), percent=False),
    ]
    spice = all((root / "spice" / "lib" / jar).is_file() for jar in _SPICE_JARS)
    if spice:
        figures.append(share("SPICE", "SPICE", "captions"))
    by_group: dict[str, list[Prediction]] = {}
    for each in predictions:
        by_group.setdefault(each.item.group, []).append(each)
    try:
        tallies = {group: _tallies(root, members, spice) for group, members in sorted(by_group.items())}
    except (OSError, subprocess.CalledProcessError) as error:
        return Joint(notes=(f"{_TOOLS}: not computed; Java failed: {error}",))
    missing = "SPICE: not computed; python -m pycocoevalcap.spice.get_stanford_models downloads what it parses with"
    return Joint(tallies=tallies, figures=tuple(figures), notes=() if spice else (missing,))


def _tallies(root: Path, predictions: Sequence[Prediction], spice: bool) -> list[Tally]:
    """What each caption adds. CIDEr weighs words by the captions of all pictures, which are not drawn again."""
    from pycocoevalcap.cider.cider import Cider

    given = _tokenized({each.item.id: [without_boxes(each.answer or "")] for each in predictions})
    right = _tokenized({each.item.id: each.item.expected["captions"] for each in predictions})
    statistics = _run_meteor(root, [" ||| ".join(("SCORE", *right[picture], *given[picture])) for picture in given])
    ciders = Cider().compute_score(right, given)[1]
    spices = _spice(right, given) if spice else [0.0] * len(given)
    return [
        {
            "captions": 1.0,
            "CIDEr": float(cider),
            "SPICE": value,
            **{f"METEOR {i}": number for i, number in enumerate(_summed(row))},
        }
        for row, cider, value in zip(statistics, ciders, spices, strict=True)
    ]


def _tokenized(captions: Mapping[str, Sequence[str]]) -> Captions:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    # The tokenizer takes captions a line each, and METEOR's program divides them by bars.
    lines = {key: [{"caption": " ".join(each.replace("|", " ").split())} for each in texts] for key, texts in captions.items()}
    return PTBTokenizer().tokenize(lines)


def _run_meteor(root: Path, lines: Sequence[str]) -> list[list[float]]:
    """METEOR's program: numbers for each `SCORE` line, and for an `EVAL` line a score of each of its parts, then of all."""
    command = ["java", "-Xmx2G", "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]
    text = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(command, cwd=root / "meteor", input=text.encode(), stdout=subprocess.PIPE, check=True)
    return [[float(number) for number in line.split()] for line in done.stdout.decode().splitlines()]


def _summed(row: Sequence[float]) -> list[float]:
    """What METEOR sums of a caption: its numbers, but for the one chunk of a caption that is matched whole."""
    whole = row[_CHUNKS] == 1 and row[_LENGTHS] == row[_MATCHES]
    return [0.0 if whole and i == _CHUNKS else number for i, number in enumerate(row)]


def _meteor(root: Path, sums: Sums) -> np.ndarray:
    """Of all captions together, as COCO's evaluation gives it: not the mean of theirs."""
    rows = np.stack([sums[f"METEOR {i}"] for i in range(_STATISTICS)], axis=1).tolist()
    scores = _run_meteor(root, [" ||| ".join(("EVAL", *(" ".join(map(str, row)) for row in rows)))])
    return np.array([score for (score,) in scores[: len(rows)]])


def _spice(right: Captions, given: Captions) -> list[float]:
    """F1 of each caption's scene graph; it puts its temporary files beside itself."""
    from pycocoevalcap.spice.spice import Spice

    by_picture = dict(zip(sorted(given), Spice().compute_score(right, given)[1], strict=True))  # it sorts
    return [float(np.nan_to_num(by_picture[picture]["All"]["f"])) for picture in given]


def _hundred_times(value: Callable[[Sums], np.ndarray]) -> Callable[[Sums], np.ndarray]:
    return lambda sums: 100 * value(sums)
