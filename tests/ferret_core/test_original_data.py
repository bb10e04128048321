"""The original release's training files: what becomes of an entry, and what is said about a bad one."""

import json

import pytest
from PIL import ExifTags, Image

from ferret_core.data.files import RecordFile, read_records
from ferret_core.data.images import Images
from ferret_core.data.original import try_original
from ferret_core.data.records import Object, Record
from ferret_core.geometry import Box, Mask
from ferret_core.prompt import Turn
from tests.conftest import GOLDEN

DATA = GOLDEN / "train" / "data"
HUMAN, GPT = "human", "gpt"


def entry(*texts: str, **fields) -> dict:
    """An entry with the given texts, turn about."""
    conversation = [{"from": (HUMAN, GPT)[i % 2], "value": text} for i, text in enumerate(texts)]
    return {"id": "e", "image": "a.png", "image_w": 100, "image_h": 50, "conversations": conversation} | fields


@pytest.fixture
def write(tmp_path):
    def write(*entries):
        path = tmp_path / "entries.json"
        path.write_text(json.dumps(entries))
        return path

    return write


def test_reads_the_recorded_files():
    images = Images(GOLDEN / "images")
    records = {record.id: record for path in DATA.glob("*.json") for record in read_records(path, images)}
    assert len(records) == 12

    gi0 = records["gi0"]
    assert (gi0.dataset, gi0.size, gi0.split) == ("git_instruction", (640, 427), "train")
    assert gi0.turns == (
        Turn("What is the relationship between [region0] and [region1]?", "The dog [box0] is left of the tree [box1]."),
        Turn("And where is [region2] in the image?", "It is at the top left [box2], above the street."),
    )
    assert [region.box for region in gi0.regions] == [Box(64, 115, 207, 251), *2 * [Box(263, 153, 457, 347)]]
    assert all(isinstance(region.mask, Mask) for region in gi0.regions)
    assert gi0.boxes == (Box(64, 115, 207, 251), *2 * (Box(263, 153, 457, 347),))

    # Boxes are pushed into the image, `<image>` is put first, a greeting is left out, and sizes are read from the pictures.
    assert [r.box for r in records["gi1_out_of_range"].regions] == [Box(0, 300, 372, 610), Box(372, 610, 372, 610)]
    assert records["gi1_out_of_range"].boxes == (Box(0, 0, 372, 610),)
    assert records["re1"].turns[0].question == "What is the location of white ball in the image?"
    assert records["li2_starts_with_gpt"].turns == (Turn("What is it?", "It is a lamp."),)
    assert records["li0"].size == (640, 427)


def test_records_come_back_from_json():
    for path in DATA.glob("*.json"):
        for record in read_records(path, Images(GOLDEN / "images")):
            assert Record.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_a_location_said_twice_is_one_region(write):
    rle = {"size": [50, 100], "counts": [4000, 1000]}
    (record,) = read_records(write(entry(
        "<image>\nIs <bbox_location1> <bbox_location1> or <bbox_location0>?", "No.",
        box_x1y1x2y2=[[[1, 2, 3, 4], [5, 6, 7, 8]], []], masks=[[None, rle], None],
    )))  # fmt: skip
    assert record.turns[0].question == "Is [region0] [region0] or [region1]?"
    assert record.regions == (Object(Box(5, 6, 7, 8), Mask.from_coco(rle)), Object(Box(1, 2, 3, 4)))


def test_an_entry_without_an_image(write):
    (record,) = read_records(write({"id": 7, "conversations": entry("Why? ", " So.")["conversations"]}))
    assert (record.id, record.image, record.size) == ("7", "", (0, 0))
    assert record.turns == (Turn("Why? ", " So."),)  # white space is part of what was learned


def test_sizes_are_those_of_the_upright_picture(write, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGB", (30, 20)).save(tmp_path / "plain.jpg")
    path = write(*(entry("Hm?", "Yes.", image=name, image_w=None) for name in ("turned.jpg", "plain.jpg")))
    assert [record.size for record in read_records(path)] == [(20, 30), (30, 20)]  # by default beside the file


@pytest.mark.parametrize(("bad", "reason"), [
    (entry("<bbox_location1>?", "Yes.", box_x1y1x2y2=[[[1, 2, 3, 4]]]),
     r"conversations\[0\]: <bbox_location1> is not among the 1 boxes of box_x1y1x2y2\[0\]"),
    (entry("Where?", "<bbox_location0>"), r"conversations\[1\]: <bbox_location0> is not among the 0 boxes"),
    (entry("<bbox_location0>?", "Yes.", box_x1y1x2y2=[[[120, 2, 130, 4]]]), r"\[0\]\[0\]: .* outside the image \(100 x 50\)"),
    (entry("<bbox_location0>?", "Yes.", box_x1y1x2y2=[[[30, 2, 10, 4]]]), r"\[0\]\[0\]: .* is reversed"),
    (entry("<bbox_location0>?", "Yes.", box_x1y1x2y2=[[[float("nan"), 2, 10, 4]]]), r"\[0\]\[0\]: .* is reversed"),
    (entry("<bbox_location0>?", "Yes.", box_x1y1x2y2=[[[1, 2, 3]]]),
     r"box_x1y1x2y2\[0\]\[0\]: must be \[x1, y1, x2, y2\], got \[1, 2, 3\]"),
    (entry("<bbox_location0>?", "Yes.", box_x1y1x2y2=[[[1, 2, 3, "x"]]]), "box: y2 = 'x'"),
    (entry("<bbox_location0>?", "Yes.", box_x1y1x2y2=[[[1, 2, 3, 4]]], masks=[[{"size": [5, 5], "counts": "o1"}]]),
     r"masks\[0\]\[0\]: its size 5 x 5 is not the image's, 100 x 50"),
    (entry("Why?", "So.", "And?"), "the last question has no answer"),
    (entry(), "conversations: has no question"),
    (entry("<image>\n ", "So."), "a question is empty"),
    (entry("See [box0]?", "No."), r"conversations\[0\].value: \[regionN\] and \[boxN\] are reserved"),
    (entry("Why?", "So.") | {"conversations": [{"from": HUMAN, "value": "a"}, {"from": HUMAN, "value": "b"}]},
     r"conversations\[1\].from: must be 'gpt', turn about, got 'human'"),
    (entry("Why?", "So.", image="missing.png", image_w=None), "image: .*missing.png is missing; without image_w and image_h"),
    ({"id": "e"}, "field 'conversations' is missing"),
    ({"id": "e", "conversations": [{"from": HUMAN}]}, "field 'value' is missing"),
    (entry("Why?", 3), r"conversations\[1\]: must be {'from': .*, 'value': text}"),
    ({"id": "e", "conversations": ["Why?"]}, r"conversations\[0\]: must be {'from': .*, 'value': text}, got 'Why\?'"),
    (entry("<bbox_location0>?", "Yes.", box_x1y1x2y2=5), "box_x1y1x2y2: must be a list with a list for each turn"),
])  # fmt: skip
def test_bad_entries_are_named_and_the_next_one_follows(bad, reason, write):
    path = write(entry("Why?", "So."), bad, entry("Why?", "So."))
    with pytest.raises(ValueError, match=rf"entries.json: entry 2 \(e\): .*{reason}"):
        list(read_records(path))
    first, second, third = try_original(path)
    assert first == third
    assert isinstance(second, ValueError)
    records = RecordFile(path)
    assert records[2] == first
    with pytest.raises(ValueError, match=r"entry 2 \(e\)"):
        records[1]


@pytest.mark.parametrize(
    ("text", "reason"), [("{", "is not JSON"), ("{}", "must be a list of entries"), ("[3]", "entry 1: must")]
)
def test_other_files_are_refused(text, reason, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"other.json: {reason}"):
        list(read_records(path))
