"""What the browser is sent, and the assets it is sent with."""

import shutil
import subprocess
from pathlib import Path

import pytest

import ui
from ferret_core.geometry import ImageSize
from ferret_core.grounding import find_spans
from ui.components import message_parts

UI = Path(ui.__file__).parent
SIZE = ImageSize(1000, 1000)


def parts(text):
    """As text, {phrase: boxes} and [region]."""
    return [
        {part["text"]: len(part["boxes"])} if "boxes" in part else [part["region"]] if "region" in part else part["text"]
        for part in message_parts(text, find_spans(text, SIZE))
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("No box.", ["No box."]),
        ("It is a dog [1, 2, 3, 4].", ["It is ", {"a dog": 1}, "."]),
        ("Two dogs [1, 2, 3, 4] [5, 6, 7, 8] and a cat [9, 9, 10, 10].", [{"Two dogs": 2}, " and ", {"a cat": 1}, "."]),
        ("The dog is at [1, 2, 3, 4], it is.", [{"The dog": 1}, " is at", ", it is."]),
        ("[1, 2, 3, 4]", [{"": 1}]),
        ("Is [region0] left of [region12]?", ["Is ", [0], " left of ", [12], "?"]),
        ("What is in [1", ["What is in [1"]),
        ("**a** <b> [x](y)", ["**a** <b> [x](y)"]),
    ],
)
def test_parts_of_a_message(text, expected):
    assert parts(text) == expected


def test_equal_phrases_have_one_color():
    text = "A dog [1, 2, 3, 4] and a cat [1, 2, 3, 5]. A dog [5, 5, 6, 6]"
    colors = [part["color"] for part in message_parts(text, find_spans(text, SIZE)) if "boxes" in part]
    assert colors[0] == colors[2] != colors[1]


def test_the_canvas_is_small():
    assert sum((UI / "static" / name).stat().st_size for name in ("canvas.js", "canvas.css")) <= 25_000


@pytest.mark.skipif(not shutil.which("npm"), reason="needs npm")
def test_built_assets_are_those_of_the_source(tmp_path):
    frontend = tmp_path / "frontend"
    shutil.copytree(UI / "frontend", frontend, ignore=shutil.ignore_patterns("node_modules"))
    for command in (["npm", "ci", "--silent"], ["npm", "run", "--silent", "build"]):
        subprocess.run(command, cwd=frontend, check=True, capture_output=True)
    for built in (tmp_path / "static").iterdir():
        assert built.read_bytes() == (UI / "static" / built.name).read_bytes(), f"run `npm run build`: {built.name} differs"
