"""Statistics of records: counted by hand, the same in the table, the JSON and the page."""

import json
import re

import numpy as np
from typer.testing import CliRunner

from ferret_core.cli import app
from ferret_core.data.files import write_records
from ferret_core.data.records import Object, Record
from ferret_core.data.statistics import Statistics, collect
from ferret_core.geometry import Box, ImageSize, Mask, Point
from ferret_core.prompt import Turn

SIZE = ImageSize(100, 50)


def make(number, image="a.png", dataset="one", **changes):
    fields = {
        "regions": (Object(Box(0, 0, 9, 9)), Object(Box(0, 0, 9, 9), Mask.from_array(np.ones((50, 100)))), Point(1, 1)),
        "boxes": (Box(0, 0, 50, 25), Box(90, 40, 100, 50), Box(90, 0, 400, 10)),
        "turns": (Turn("What are [region0]?", "A dog [box0] and two cats [box1] [box2]."), Turn("Sure?", "Yes, I am.")),
        "dataset": dataset,
        "license": "CC0",
    }  # fmt: skip
    return Record(id=str(number), image=image, size=SIZE, **fields | changes)


RECORDS = [
    make(0),
    make(1, dataset="two"),
    make(2, "b.png", license="", split="test", regions=(), boxes=(), turns=(Turn("Why?", "So."),)),
    Record(id="text", image="", size=ImageSize(0, 0), turns=(Turn("Why?", None),), dataset="<text>"),
]


def test_counted_by_hand():
    counted = collect(RECORDS)
    assert (counted.records, counted.images, counted.turns, counted.boxes) == (4, 2, 6, 6)
    assert counted.regions == {"object": 2, "object with mask": 2, "point": 2}
    assert counted.boxes_per_answer == {3: 2, 0: 3}
    assert counted.words_per_answer == {5: 2, 3: 2, 1: 1}
    assert counted.datasets == {"one": 2, "two": 1, "<text>": 1}
    assert counted.licenses == {"CC0": 2, "(none)": 2}
    assert counted.splits == {"train": 3, "test": 1}
    # Half of either side; a tenth by a fifth; a tenth by a fifth once it is pushed into the picture.
    assert counted.box_sizes == [0, 4, 0, 0, 0, 2, 0, 0, 0, 0]
    places = np.argwhere(np.array(counted.box_positions)).tolist()
    assert places == [[1, 15], [4, 4], [14, 15]]


def test_the_table_says_it_all():
    lines = dict(re.findall(r"^(\w+(?: \w+)?)  +(.*)$", collect(RECORDS).to_text(), re.M))
    assert re.fullmatch(r"4  of 2 pictures", lines["records"])
    assert re.fullmatch(r"6  1\.5 a record", lines["turns"])
    assert re.fullmatch(r"6  object 2, object with mask 2, point 2", lines["regions"])
    assert re.fullmatch(r"6  1\.2 an answer, at most 3", lines["boxes"])
    assert re.fullmatch(r"17  3\.4 an answer, at most 5", lines["words"])
    assert lines["box sides"].strip() == "up to 20 % 4, up to 60 % 2"
    assert lines["datasets"].strip() == "3  one 2 (50 %), two 1 (25 %), <text> 1 (25 %)"


def test_many_datasets_are_summed_up():
    text = collect(make(i, dataset=f"d{i}") for i in range(11)).to_text()
    assert "d7 1 (9 %), 3 more" in text
    assert "d8" not in text


def test_nothing_at_all():
    assert collect([]).to_text().startswith("records    0  of 0 pictures")
    assert "<svg" in Statistics().to_html("nothing")


def test_the_page_escapes_names_and_draws_every_count():
    page = collect(RECORDS).to_html("a & b")
    assert "<title>a &amp; b</title>" in page
    assert "&lt;text&gt;" in page
    assert "<text>" not in page
    for title in ("one", "two", "0: 3", "3: 2", "3-5: 4", "20 %: 4", "60 %: 2"):
        assert f"{title}</t" in page, title


def test_command(tmp_path):
    write_records(tmp_path / "a.jsonl", RECORDS[:2])
    write_records(tmp_path / "b.parquet", RECORDS[2:])
    files = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.parquet")]
    printed = CliRunner().invoke(app, ["data", "stats", *files, "--html", str(tmp_path / "s.html"), "--json"]).stdout
    assert json.loads(printed) == json.loads(json.dumps(collect(RECORDS).to_json()))
    assert (tmp_path / "s.html").read_text() == collect(RECORDS).to_html("a.jsonl, b.parquet")
    assert CliRunner().invoke(app, ["data", "stats", *files]).stdout == collect(RECORDS).to_text() + "\n"
