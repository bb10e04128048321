"""The preview page: what it draws and where, which records it takes, and what it does with broken ones."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ferret_core.cli import app
from ferret_core.data.files import RecordFile, write_records
from ferret_core.data.images import Images
from ferret_core.data.preview import preview_html, sample_records
from ferret_core.data.records import Object, Record
from ferret_core.geometry import Box, ImageSize
from ferret_core.overlay import PALETTE, region_color
from ferret_core.prompt import Turn

SIZE = ImageSize(400, 200)


def make(number=0, dataset="one", **changes):
    fields = {
        "regions": (Object(Box(20, 20, 120, 180)), Object(Box(200, 60, 210, 70))),
        "boxes": (Box(300, 20, 380, 120),),
        "turns": (Turn("What is [region0]?", "Left of a <b>cat [box0].\nYes."),),
    }
    return Record(id=f"r{number}", image=f"{number}.png", size=SIZE, dataset=dataset, **fields | changes)


def html(*records, images):
    return preview_html(records, Images(images), "A & B", "a note")


def pictures(page):
    """The pictures on a page as (H, W, 3) arrays."""
    found = re.findall(r'src="data:image/webp;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int) for data in found]


def shows(picture, color, x, y, tolerance=60):
    """Whether the pixel is of the colour, as near as WebP keeps it."""
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return abs(picture[y, x] - wanted).max() < tolerance


@pytest.fixture
def white(tmp_path):
    for number in range(10):
        Image.new("RGB", SIZE, "white").save(tmp_path / f"{number}.png")
    return tmp_path


def test_regions_and_boxes_are_drawn_where_they_are(white):
    (picture,) = pictures(html(make(), images=white))
    assert picture.shape == (200, 400, 3)
    assert shows(picture, PALETTE[0], 301, 70)  # the outline of the box
    assert shows(picture, "#ffffff", 340, 60)  # what is inside of it
    shade = 255 + (np.array([int(region_color(0)[i : i + 2], 16) for i in (1, 3, 5)]) - 255) * 110 / 255
    assert abs(picture[100, 70] - shade).max() < 30  # the region
    assert shows(picture, "#ffffff", 205, 65)  # a region that this turn does not mention


def test_every_turn_shows_its_own(white):
    turns = (Turn("Hm?", "Hm."), Turn("What is [region0]?", "A dog."), Turn("Really?", "Yes."), Turn("Where?", "A cat [box0]."))
    first, region, box = pictures(html(make(turns=turns), images=white))
    assert (first == 255).all()
    assert not shows(region, "#ffffff", 70, 100)
    assert shows(region, "#ffffff", 301, 70)
    assert shows(box, "#ffffff", 70, 100)
    assert shows(box, PALETTE[0], 301, 70)


def test_large_pictures_are_scaled(tmp_path):
    size = ImageSize(2000, 1000)
    Image.new("RGB", size, "white").save(tmp_path / "0.png")
    record = Record(
        id="a", image="0.png", size=size, turns=(Turn("Where?", "Here [box0]."),), boxes=(Box(1000, 500, 1500, 900),)
    )
    (picture,) = pictures(html(record, images=tmp_path))
    assert picture.shape == (240, 480, 3)
    assert shows(picture, PALETTE[0], 241, 160, tolerance=100)


def test_texts_are_escaped_and_coloured(white):
    page = html(make(), images=white)
    assert "<title>A &amp; B</title>" in page
    assert f'<mark class="region" style="--color: {region_color(0)}">region0</mark>?' in page
    assert f'<mark style="--color: {PALETTE[0]}">a &lt;b&gt;cat</mark> ' in page
    assert f'<small style="color: {PALETTE[0]}">[750, 100, 950, 600]</small>.<br>Yes.' in page
    assert "<b>cat" not in page


def test_broken_records_say_why(white):
    missing = make(99)
    outside = make(1, boxes=(Box(300, 20, 401, 120),))
    page = html(ValueError("line 3: <no> record"), missing, outside, images=white)
    assert '<p class="wrong">line 3: &lt;no&gt; record</p>' in page
    assert f'<p class="wrong">record r99: image {white}/99.png is missing</p>' in page
    assert '<p class="wrong">boxes[0]: box: x2 = 401 is outside the image (400 x 200): must be in [0, 400]</p>' in page
    (picture,) = pictures(page)
    assert (picture == 255).all()
    text_alone = Record(id="t", image="", size=ImageSize(0, 0), turns=(Turn("Hello?", "Hello."),))
    page = html(text_alone, images=white)
    assert "Hello." in page
    assert not pictures(page)
    assert 'class="wrong"' not in page


def test_samples_are_random_and_repeatable(tmp_path):
    write_records(tmp_path / "a.jsonl", (make(i, "even" if i % 2 == 0 else "odd") for i in range(100)))
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write(json.dumps({"id": "bad"}) + "\n")
    records = RecordFile(tmp_path / "a.jsonl")
    some = list(sample_records(records, 10, seed=3))
    assert some == list(sample_records(records, 10, seed=3))
    assert some != list(sample_records(records, 10, seed=4))
    assert some != [records[i] for i in range(10)]
    everything = list(sample_records(records, 1000))
    assert len(everything) == 101
    assert len({str(record) for record in everything}) == 101
    assert sum(isinstance(record, ValueError) for record in everything) == 1
    odd = list(sample_records(records, 1000, dataset="odd"))
    assert sorted(int(record.id[1:]) for record in odd) == list(range(1, 100, 2))


def test_command(white):
    write_records(white / "a.parquet", (make(i, "even" if i % 2 == 0 else "odd") for i in range(10)))
    command = ["data", "preview", str(white / "a.parquet"), "--output", str(white / "p.html")]
    assert CliRunner().invoke(app, [*command, "--count", "3", "--dataset", "odd"]).exit_code == 0
    page = (white / "p.html").read_text()
    assert "3 of 10 records, of dataset odd, seed 0" in page
    assert len(pictures(page)) == 3
    result = CliRunner().invoke(app, [*command, "--dataset", "neither"])
    assert str(result.exception).endswith("a.parquet: no records of dataset 'neither'")
