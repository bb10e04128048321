"""Files of records: what is written is read again, anything wrong says where, and pictures come from disk or S3."""

import dataclasses
import io
import json
import multiprocessing
import os
import pickle
import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from ferret_core import s3
from ferret_core.cli import app
from ferret_core.data.checks import check_record, find_problems
from ferret_core.data.files import RecordFile, read_records, write_records
from ferret_core.data.images import Images
from ferret_core.data.records import Object, Record
from ferret_core.geometry import Box, ImageSize, Mask, Point, Polygon, Scribble
from ferret_core.prompt import Turn
from tests.object_store import BUCKET, s3_server

SIZE = ImageSize(64, 48)
DOCS = (Path(__file__).parents[2] / "docs" / "data.md").read_text()


def some_mask(size=SIZE):
    mask = np.zeros((size.height, size.width), bool)
    mask[10:20, 5:9] = True
    return Mask.from_array(mask)


def make(number=0, **changes):
    fields = {
        "id": f"r{number}",
        "image": f"{number}.png",
        "size": SIZE,
        "regions": (
            Object(Box(1, 2, 30, 40), some_mask()), Object(Box(0.1, 0.2, 0.3, 47.9)), Point(1.5, 2.25), Box(0, 0, 64, 48),
            Polygon(((0, 0), (9, 0), (9, 9))), Scribble(((1, 1), (20, 30)), 3.5), some_mask(),
        ),
        "boxes": (Box(1 / 3, 2, 30.7, 40), Box(0, 0, 5, 5)),
        "turns": (Turn("What are [region0] and [region6]?", "A „dog“ [box0]\nand a 猫 [box1]."), Turn("Sure?", "Yes.")),
        "dataset": "made up",
        "license": "CC0",
        "split": "validation",
    }  # fmt: skip
    return Record(**fields | changes)


def write_lines(path, *values):
    path.write_text("".join((value if isinstance(value, str) else json.dumps(value)) + "\n" for value in values))
    return path


def without(record, field):
    return {name: value for name, value in record.to_json().items() if name != field}


# ---- written and read ------------------------------------------------------------------------------------------------


def test_the_record_of_these_tests_uses_every_field():
    """So that a field which a file forgets fails the round trips below."""
    for field in dataclasses.fields(Record):
        if field.default is not dataclasses.MISSING:
            assert getattr(make(), field.name) != field.default, field.name


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_what_is_written_is_read_again(tmp_path, suffix):
    records = [make(0), make(1, regions=(), boxes=(), turns=(Turn("Why?", None),)), make(2, turns=())]
    text_alone = Record(id="t", image="", size=ImageSize(0, 0), turns=(Turn("Hello?", "Hello."),))
    path = tmp_path / f"new/records{suffix}"
    assert write_records(path, iter([*records, text_alone] * 3000)) == 12_000
    assert list(read_records(path)) == [*records, text_alone] * 3000
    file = RecordFile(path)
    assert len(file) == 12_000
    assert [file[0], file[-2], file[7003]] == [records[0], records[2], text_alone]
    assert list(file.text_lengths[:4]) == [72, 4, 0, 12]
    assert file.text_lengths.dtype == np.int32
    with pytest.raises(IndexError):
        file[12_000]


@given(st.lists(st.floats(0, 64, width=64), min_size=4, max_size=4), st.text(st.characters(codec="utf-8")))
def test_any_number_and_text_survive(tmp_path_factory, numbers, text):
    record = make(boxes=(Box(*numbers),), turns=(Turn(text.replace("[", "("), ""),), regions=(Point(*numbers[:2]),))
    for suffix in (".jsonl", ".parquet"):
        path = tmp_path_factory.mktemp("files") / f"one{suffix}"
        write_records(path, [record])
        assert list(read_records(path)) == [record]


def test_parquet_is_plain_to_other_readers(tmp_path):
    import pyarrow.parquet

    write_records(tmp_path / "records.parquet", [make()])
    (row,) = pyarrow.parquet.read_table(tmp_path / "records.parquet").to_pylist()
    assert (row["width"], row["height"]) == SIZE
    assert row["boxes"][1] == [0, 0, 5, 5]
    assert row["turns"][1] == {"question": "Sure?", "answer": "Yes."}
    assert json.loads(row["regions"][2]) == {"point": [1.5, 2.25]}


def test_parquet_columns_of_others_and_optional_ones(tmp_path):
    import pyarrow
    import pyarrow.parquet

    row = {"id": "a", "image": "a.png", "width": 8, "height": 8, "turns": [{"question": "Why?", "answer": "So."}], "extra": 3}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row, row | {"width": None}]), tmp_path / "a.parquet")
    records = RecordFile(tmp_path / "a.parquet")
    assert records[0].turns == (Turn("Why?", "So."),)
    assert records[0].split == "train"
    with pytest.raises(ValueError, match=r"a\.parquet: row 2: record a: field 'size' is missing"):
        records[1]


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "records.jsonl"
    write_records(path, [make(1)])

    def failing():
        yield make(2)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_records(path, failing())
    assert list(read_records(path)) == [make(1)]
    assert os.listdir(tmp_path) == ["records.jsonl"]


def test_other_kinds_of_file(tmp_path):
    with pytest.raises(ValueError, match=r"records are written as \.jsonl or \.parquet"):
        write_records(tmp_path / "records.json", [])
    (tmp_path / "records.csv").touch()
    with pytest.raises(ValueError, match=r"records are read from \.jsonl, \.parquet, \.json files"):
        RecordFile(tmp_path / "records.csv")
    with pytest.raises(FileNotFoundError, match="no such file"):
        list(read_records(tmp_path / "nowhere.jsonl"))
    (tmp_path / "not.parquet").write_text("not")
    with pytest.raises(ValueError, match=r"not\.parquet: is not a Parquet file"):
        list(read_records(tmp_path / "not.parquet"))


def test_original_files(tmp_path):
    entry = {
        "id": 7, "image": "a.png",
        "conversations": [{"from": "human", "value": "<image>\nWhat is <bbox_location0>?"}, {"from": "gpt", "value": "A dog."}],
        "box_x1y1x2y2": [[[1, 2, 30, 40]], []],
    }  # fmt: skip
    path = tmp_path / "vg.json"
    path.write_text(json.dumps([entry, {"id": 8}, entry | {"id": 9}]))
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", SIZE).save(tmp_path / "elsewhere" / "a.png")
    records = RecordFile(path, Images(tmp_path / "elsewhere"))
    assert len(records) == 3
    assert (records[0].size, records[2].id, records[0].regions) == (SIZE, "9", (Object(Box(1, 2, 30, 40)),))
    with pytest.raises(ValueError, match=r"vg\.json: entry 2 .*missing"):
        records[1]
    (problem,) = find_problems(path, Images(tmp_path / "elsewhere"))
    assert re.fullmatch(r".*vg\.json: entry 2: .*conversations.* is missing", str(problem))


# ---- the index -------------------------------------------------------------------------------------------------------


@pytest.fixture
def records_path(tmp_path, monkeypatch):
    monkeypatch.setenv("FERRET_HOME", str(tmp_path / "home"))
    path = tmp_path / "records.jsonl"
    write_records(path, map(make, range(10)))
    return path


def test_the_index_is_kept_until_the_file_changes(records_path, monkeypatch):
    RecordFile(records_path)
    with monkeypatch.context() as patch:
        patch.setattr("ferret_core.data.files._build_index", lambda *_: pytest.fail("built again"))
        assert RecordFile(records_path)[3] == make(3)
    write_records(records_path, map(make, range(20)))
    assert RecordFile(records_path)[19] == make(19)


def test_a_damaged_index_is_built_again(records_path):
    RecordFile(records_path)
    index = records_path.with_name("records.jsonl.index")
    index.write_bytes(index.read_bytes()[:100])
    assert RecordFile(records_path)[9] == make(9)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_read_only_places_are_indexed_at_home(tmp_path, monkeypatch, suffix):
    path, home = tmp_path / "shared" / f"records{suffix}", tmp_path / "home"
    monkeypatch.setenv("FERRET_HOME", str(home))
    write_records(path, map(make, range(10)))
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) != path.parent and allowed(place, mode))
    assert RecordFile(path)[3] == make(3)
    assert os.listdir(path.parent) == [path.name]
    monkeypatch.setattr("ferret_core.data.files._build_index", lambda *_: pytest.fail("built again"))
    assert RecordFile(path)[3] == make(3)


def test_a_file_that_changes_in_use_is_noticed(records_path):
    records = RecordFile(records_path)
    write_records(records_path, map(make, range(1, 11)))
    with pytest.raises(ValueError, match="has changed since it was opened"):
        records[0]


def read_all(records):
    return [record.id for record in records]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_for_themselves(records_path, method):
    records = RecordFile(records_path)
    assert records[4] == make(4)  # open here
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(read_all, [records] * 20) == [[f"r{i}" for i in range(10)]] * 20
    assert pickle.loads(pickle.dumps(records))[9] == make(9)


# ---- what is wrong says where ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (without(make(), "size"), "record r0: field 'size' is missing"),
        (make().to_json() | {"size": [64]}, r"record r0: field 'size' must be \[width, height\] in whole pixels"),
        (make().to_json() | {"size": [64, 0]}, "at least 1"),
        (make().to_json() | {"id": 7}, "record 7: field 'id' must be text, got 7"),
        (make().to_json() | {"turns": [{"answer": "x"}]}, r"record r0: turns\[0\]: field 'question' is missing"),
        (make().to_json() | {"turns": ["x"]}, r"record r0: turns\[0\]: a turn has a question and an answer, got 'x'"),
        (make().to_json() | {"boxes": [[1, 2, 3]]}, r"record r0: boxes\[0\]: expected 4 numbers, got \[1, 2, 3\]"),
        (make().to_json() | {"boxes": [[1, 2, 3, float("nan")]]}, r"record r0: boxes\[0\]: expected 4 numbers"),
        (make().to_json() | {"regions": [{"circle": []}]}, r"record r0: regions\[0\]: expected one of object, point, box"),
        (make().to_json() | {"boxes": []}, r"record r0: \[box0\] is not among its 0 boxes"),
        (make().to_json() | {"image": ""}, "record r0: regions and boxes need an image"),
        ([1], r"a record is a JSON object, got \[1\]"),
        ("{", "is not JSON"),
        ("", "is not JSON"),
    ],
)
def test_bad_lines_name_the_line_and_the_field(tmp_path, value, message):
    path = write_lines(tmp_path / "bad.jsonl", make(1).to_json(), value, make(2).to_json())
    expected = rf"bad\.jsonl: line 2: .*{message}"
    with pytest.raises(ValueError, match=expected):
        list(read_records(path))
    records = RecordFile(path)
    with pytest.raises(ValueError, match=expected):
        records[1]
    assert (records[0], records[2]) == (make(1), make(2))


@pytest.mark.parametrize(
    ("changes", "reason", "detail"),
    [
        ({"boxes": (Box(0, 0, 65, 9), Box(0, 0, 5, 5))}, "box does not fit the image", r"boxes\[0\]: .*x2 = 65 is outside"),
        ({"boxes": (Box(0, 0, 5, 5), Box(9, 9, 5, 10))}, "box does not fit the image", r"boxes\[1\]: .*x2 must not be smaller"),
        (
            {"regions": (*make().regions[:2], Point(-1, 3), *make().regions[3:])},
            "point does not fit the image",
            r"regions\[2\]",
        ),
        (
            {"regions": (Object(Box(0, 0, 9, 9), some_mask(ImageSize(48, 64))), *make().regions[1:])},
            "mask does not fit the image",
            r"regions\[0\]: mask: its size 48 x 64 is not the image's, 64 x 48",
        ),
        (
            {"regions": (Object(Box(0, 0, 9, 9), Mask.from_array(np.zeros((48, 64)))), *make().regions[1:])},
            "mask does not fit the image",
            r"regions\[0\]: mask: covers no pixel",
        ),
        ({"turns": ()}, "empty conversation", "turns must not be empty"),
        ({"turns": (Turn("  ", "x"),)}, "question missing", r"turns\[0\]\.question must not be empty"),
        ({"turns": (Turn("Why?", "x"), Turn("Why?"))}, "answer missing", r"turns\[1\]\.answer must not be empty"),
        ({"turns": (Turn("Why? <region_fea>", "x"),)}, "reserved word in a text", r"turns\[0\]\.question: '<region_fea>'"),
        ({"turns": (Turn("Why?", "x\ud800"),)}, "text not Unicode", r"turns\[0\]\.answer"),
        ({"split": "dev"}, "unknown split", "split must be one of train, validation, test, got 'dev'"),
        ({"size": ImageSize(0, 48), "regions": (), "boxes": (), "turns": (Turn("?", "!"),)}, "size out of range", "0 x 48"),
    ],
)
def test_records_that_cannot_be_learned_from(tmp_path, changes, reason, detail):
    check_record(make())
    with pytest.raises(ValueError, match=f"record r0: .*{detail}"):
        check_record(make(**changes))
    if reason not in ("size out of range", "text not Unicode"):  # which cannot be written
        path = tmp_path / "bad.jsonl"
        write_records(path, [make(1), make(**changes)])
        (problem,) = find_problems(path)
        assert (problem.line, problem.dataset, problem.reason) == (2, "made up", reason)
        assert re.fullmatch(rf".*bad\.jsonl: line 2 \(made up\): record r0: .*{detail}.*", str(problem))


def test_ids_are_unique_in_a_file(tmp_path):
    write_records(tmp_path / "twice.jsonl", [make(0), make(1), make(0)])
    (problem,) = find_problems(tmp_path / "twice.jsonl")
    assert (problem.line, problem.reason, problem.detail) == (3, "duplicate id", "record r0: has the id of line 1")


@pytest.fixture
def mixed(tmp_path):
    """Four records: two good, one whose picture is missing, one that is none."""
    path = write_lines(
        tmp_path / "mixed.jsonl", make(0).to_json(), make(1).to_json(), without(make(2), "turns"), make(3).to_json()
    )
    for number in (0, 3):
        Image.new("RGB", SIZE).save(tmp_path / f"{number}.png")
    return path


def run(*arguments):
    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    return result.exit_code, result.stdout, str(result.exception or "")


def test_check_counts_by_reason_and_fails(mixed):
    code, printed, error = run("check", mixed, "--images", mixed.parent)
    assert code == 1
    assert f"{mixed}: line 2 (made up): record r1: image {mixed.parent}/1.png is missing" in printed
    assert f"{mixed}: line 3: record r2: field 'turns' is missing" in printed
    assert re.search(r"^ +1  picture missing, unreadable or of another size$", printed, re.M)
    assert printed.endswith("2 good records, 2 bad\n")
    assert error == "2 bad records, and --skip-bad puts up with 0"
    assert run("check", mixed)[1].endswith("3 good records, 1 bad\n")  # pictures are only opened where it is told to look


def test_check_writes_the_good_ones_unless_too_many_are_bad(mixed):
    good = mixed.with_name("good.jsonl")
    code, _, error = run("check", mixed, "--images", mixed.parent, "--skip-bad", 1, "--output", good)
    assert (code, good.exists()) == (1, False)
    assert error.endswith(f"{good} was not written")
    code, printed, _ = run("check", mixed, "--images", mixed.parent, "--skip-bad", 2, "--output", good)
    assert code == 0
    assert printed.endswith(f"wrote 2 records to {good}\n")
    assert list(read_records(good)) == [make(0), make(3)]


def test_convert(tmp_path):
    write_records(tmp_path / "a.jsonl", map(make, range(5)))
    assert run("convert", tmp_path / "a.jsonl", tmp_path / "b.parquet")[0] == 0
    assert run("convert", tmp_path / "b.parquet", tmp_path / "c.jsonl")[0] == 0
    assert (tmp_path / "c.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()


def test_the_documented_records_are_records():
    examples = re.findall(r"^```json\n(.*?)^```", DOCS, re.M | re.S)
    assert examples
    for example in examples:
        record = Record.from_json(json.loads(example))
        check_record(record)
        assert Record.from_json(record.to_json()) == record


def test_the_documented_code_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("playground", "scenes", "--count", 20)[0] == 0
    (code,) = re.findall(r"^```python\n(.*?)^```", DOCS, re.M | re.S)
    exec(compile(code, "data.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == re.findall(r"print\(.*\)  # (.*)", code)


def test_the_documentation_names_every_field():
    for field in dataclasses.fields(Record):
        assert f"| `{field.name}` |" in DOCS, field.name


# ---- pictures --------------------------------------------------------------------------------------------------------


def picture(size=SIZE, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(params=["directory", "s3"])
def place(request, tmp_path):
    """(directory of the pictures, its name as a root of `Images`)."""
    if request.param == "directory":
        yield tmp_path, tmp_path
    else:
        with s3_server(tmp_path) as bucket:
            (bucket / "pictures").mkdir()
            yield bucket / "pictures", f"s3://{BUCKET}/pictures"


def test_pictures_are_upright_and_as_large_as_their_records_say(place):
    directory, root = place
    images = pickle.loads(pickle.dumps(Images(root)))

    def put(content):
        (directory / "0.png").write_bytes(content)
        time.sleep(0.1)  # for longer than the S3 server remembers what was there

    put(picture())
    assert images.open(make()).getpixel((0, 0)) == (255, 0, 0)

    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    put(picture(ImageSize(48, 64), "JPEG", exif=exif))
    assert images.open(make()).size == SIZE

    put(picture(ImageSize(48, 64)))
    with pytest.raises(ValueError, match=rf"record r0: image {root}/0\.png is 48 x 64 pixels, but the record says 64 x 48"):
        images.open(make())
    put(picture()[:60])
    with pytest.raises(ValueError, match=rf"record r0: image {root}/0\.png: "):
        images.open(make())
    (directory / "0.png").unlink()
    with pytest.raises(ValueError, match=rf"record r0: image {root}/0\.png is missing"):
        images.open(make())


def test_a_store_that_is_away_is_not_the_records_fault(tmp_path, monkeypatch):
    with s3_server(tmp_path) as bucket:
        (bucket / "0.png").write_bytes(picture())
        assert Images(f"s3://{BUCKET}").open(make()).size == SIZE
        with monkeypatch.context() as patch:
            patch.setenv("AWS_SECRET_ACCESS_KEY", "another")
            with pytest.raises(OSError, match="SignatureDoesNotMatch"):
                Images(f"s3://{BUCKET}").open(make())
        endpoint = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    with pytest.raises(OSError, match=endpoint.rpartition(":")[2]):
        Images(f"s3://{BUCKET}").open(make())


def test_the_environment_must_say_who_we_are(monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    with pytest.raises(ValueError, match=r"AWS_ACCESS_KEY_ID: S3 at .* needs it"):
        s3.connect()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    with pytest.raises(ValueError, match="AWS_ENDPOINT_URL: must be http://HOST:PORT"):
        s3.connect()


def test_addresses():
    assert s3.split_url("s3://bucket/a/b.png") == ("bucket", "a/b.png")
    assert s3.split_url("s3://bucket") == ("bucket", "")
    for wrong in ("s3://", "/bucket/key", "https://bucket/key"):
        with pytest.raises(ValueError, match="is s3://BUCKET/KEY"):
            s3.split_url(wrong)
