"""`ferret data build`: the same bytes however it runs, never half a shard, nothing twice, nothing from the evaluation."""

import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from ferret_core.data.build.leaks import Exclusions
from ferret_core.data.build.reading import Problems, Request
from ferret_core.data.build.scene import Scene, SceneObject
from ferret_core.data.build.shards import FREE_TASKS, Plan, Shard, build, build_records, build_shard, run_here
from ferret_core.data.build.sources import SOURCES
from ferret_core.data.checks import find_problems
from ferret_core.data.files import read_records
from ferret_core.data.records import Object
from ferret_core.geometry import Box, ImageSize
from ferret_core.prompt import Turn, build_prompt, write_boxes
from tests.downloads import (
    make_coco,
    make_flickr30k,
    make_llava,
    make_lvis,
    make_objects365,
    make_refcoco,
    make_visual_genome,
    write_json,
)
from tests.processes import FERRET

MAKERS = {
    "visual-genome": make_visual_genome,
    "objects365": make_objects365,
    "refcoco": make_refcoco,
    "refcoco+": make_refcoco,
    "refcocog": make_refcoco,
    "flickr30k": make_flickr30k,
    "lvis": make_lvis,
    "coco": make_coco,
    "llava": make_llava,
}


def run_build(source, root, output, *, workers=1, shards=3, exclude=(), run=None, skip_bad=0, **plan):
    request = Request(root, plan.get("split", "train"), Problems(skip_bad))
    return build(request, Plan(source=source, **plan), output, shards=shards, exclude=exclude, run=run or run_here(workers))


def contents(output):
    return {path.name: path.read_bytes() for path in sorted(output.glob("shard-*.jsonl"))}


def records_of(output):
    return [record for path in sorted(output.glob("shard-*.jsonl")) for record in read_records(path)]


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_becomes_records_that_can_be_learned_from(tmp_path, source):
    report = run_build(source, MAKERS[source](tmp_path / "in"), tmp_path / "out")
    records = records_of(tmp_path / "out")
    assert records
    assert report["images"] > 0
    assert len({record.id for record in records}) == len(records)
    for path in (tmp_path / "out").glob("shard-*.jsonl"):
        assert list(find_problems(path)) == []
    for record in records:
        assert (record.dataset, record.split, record.license) == (source, "train", SOURCES[source].license)
        regions = {i: region.box for i, region in enumerate(record.regions)}
        turns = [Turn(turn.question, write_boxes(turn.answer, record.boxes, record.size)) for turn in record.turns]
        prompt, _ = build_prompt(turns, regions, record.size)
        assert "[box" not in prompt
        assert "{" not in prompt
    done = {task for task, count in report["exchanges"].items() if count}
    expected = {
        "visual-genome": {"name", "locate", "describe", "relate", "verify", "attribute", "relation", "phrase"},
        "objects365": {"name", "locate", "find", "presence", "verify", "count"},
        "refcoco": {"refer", "describe", "phrase"},
        "flickr30k": {"describe", "caption", "ground", "phrase"},
        "lvis": {"name", "find", "presence"},
        "coco": {"name", "locate", "find", "caption", "presence", "verify", "count", "relation"},
        "llava": {"dialogue"},
    }
    assert expected.get(source, {"refer", "describe", "phrase"}) <= done


def test_coordinates_and_masks_arrive_as_they_were(tmp_path):
    run_build("coco", make_coco(tmp_path / "in", images=(9, 25)), tmp_path / "out", per_task=9)
    file = json.loads((tmp_path / "in" / "annotations" / "instances_train2017.json").read_text())
    for record in records_of(tmp_path / "out"):
        given = [each["bbox"] for each in file["annotations"] if f"{each['image_id']:012d}" in record.image]
        boxes = [Box(x, y, x + width, y + height) for x, y, width, height in given]
        assert {*record.boxes} <= {*boxes}
        for region in record.regions:
            assert isinstance(region, Object)
            assert region.box in boxes
            pixels = region.mask.to_mask(record.size)
            assert pixels[int(region.box.y1) + 1 : int(region.box.y2), int(region.box.x1) + 1 : int(region.box.x2)].all()


def test_the_same_bytes_whatever_the_number_of_workers_and_the_order_of_annotations(tmp_path):
    make_coco(tmp_path / "in")
    run_build("coco", tmp_path / "in", tmp_path / "one")
    run_build("coco", tmp_path / "in", tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(contents(tmp_path / "one")) == 3
    run_build("coco", tmp_path / "in", tmp_path / "other", seed=1)
    assert contents(tmp_path / "one") != contents(tmp_path / "other")
    # The hash of strings must not matter.
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [*FERRET, "data", "build", "coco", str(tmp_path / "in"), "--output", str(tmp_path / seed), "--shards", "3"]
        subprocess.run(command, env=environment, check=True)
        assert contents(tmp_path / seed) == contents(tmp_path / "one")


def test_a_task_says_the_same_whatever_other_tasks_there_are(tmp_path):
    make_coco(tmp_path / "in")
    said = []
    for name, tasks in (("all", FREE_TASKS), ("some", ("count", "name"))):
        run_build("coco", tmp_path / "in", tmp_path / name, tasks=tasks, turns=1)
        said.append({(r.image, t.question, t.answer, r.boxes) for r in records_of(tmp_path / name) for t in r.turns})
    everything, some = said
    assert len(some & everything) >= 0.9 * len(some)  # a turn that two tasks have in common goes to the first


def test_a_build_goes_on_where_it_was_stopped(tmp_path):
    make_coco(tmp_path / "in")
    run_build("coco", tmp_path / "in", tmp_path / "whole", shards=4)

    def dies(work):
        yield from itertools.islice(map(build_shard, work), 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_build("coco", tmp_path / "in", tmp_path / "out", shards=4, run=dies)
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("shard-*.jsonl")}
    assert len(first) == 2
    (tmp_path / "out" / f".{next(iter(first)).name}.0123").write_text("half a sha")  # as a killed machine leaves it
    report = run_build("coco", tmp_path / "in", tmp_path / "out", shards=4)
    assert (report["shards"], report["already finished"]) == (2, 2)
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_build_survives_being_killed(tmp_path):
    """SIGKILL at any moment leaves whole shards only; the next run completes them to the same bytes."""
    make_coco(tmp_path / "in", images=range(1, 400))
    script = (
        "import sys; from pathlib import Path; from tests.ferret_core.test_build_shards import run_build\n"
        "run_build('coco', Path(sys.argv[1]), Path(sys.argv[2]), shards=40)"
    )
    arguments = [sys.executable, "-c", script, str(tmp_path / "in"), str(tmp_path / "out")]
    with subprocess.Popen(arguments, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL) as process:
        while not contents(tmp_path / "out"):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    there = contents(tmp_path / "out")
    assert 0 < len(there) < 40
    run_build("coco", tmp_path / "in", tmp_path / "out", shards=40)
    run_build("coco", tmp_path / "in", tmp_path / "whole", shards=40)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert there.items() <= contents(tmp_path / "whole").items()


def test_a_directory_holds_one_kind_of_data(tmp_path):
    make_coco(tmp_path / "in")
    run_build("coco", tmp_path / "in", tmp_path / "out")
    for change, message in (
        ({"seed": 1}, r"manifest\.json: is of seed = 0, not 1; take another --output, or the same seed"),
        ({"shards": 4}, "shards = 3, not 4"),
        ({"turns": 2}, "turns = 4, not 2"),
        ({"tasks": ("name",)}, "is of tasks"),
        ({"exclude": [tmp_path / "val.txt"]}, "is of exclude"),
    ):
        (tmp_path / "val.txt").write_text("coco:9\n")
        with pytest.raises(ValueError, match=message):
            run_build("coco", tmp_path / "in", tmp_path / "out", **change)
    make_coco(tmp_path / "in", images=(1, 2))
    with pytest.raises(ValueError, match="is of files"):
        run_build("coco", tmp_path / "in", tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(ValueError, match="without a manifest"):
        run_build("coco", tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "test"}, "--split: coco has train, validation, not 'test'"),
        ({"tasks": ("naem",)}, "--tasks: 'naem' is none; known: name, "),
        ({"tasks": ("instruct",)}, "instruct needs a language model"),
        ({"turns": 0}, "--turns: must be at least 1"),
        ({"per_task": 0}, "--per-task: must be at least 1"),
        ({"source": "imagenet"}, "SOURCE: must be one of visual-genome, "),
    ],
)
def test_plans_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        Plan(**{"source": "coco"} | change)


def test_nothing_is_asked_and_answered_twice(tmp_path):
    box = Box(10, 10, 100, 100)
    dog, again = SceneObject(box=box, name="dog"), SceneObject(box=Box(10, 10, 100, 101), name="dog")
    captions = ("A dog [box0].", "A dog [box1].", "A dog [box0].")
    scene = Scene(id="1", image="1.jpg", size=ImageSize(200, 200), objects=(dog, again), captions=captions, checked=("dog",))
    for seed in range(10):
        records, _ = build_records(Plan(source="coco", seed=seed, per_task=20), scene)
        turns = Counter((t.question, t.answer) for t in _in_pixels(records))
        assert max(turns.values()) == 1
        assert all(set(record.boxes) <= {box} for record in records)


def _in_pixels(records):
    for record in records:
        for turn in record.turns:
            question = turn.question
            for i, region in enumerate(record.regions):
                question = question.replace(f"[region{i}]", str(region.box))
            yield Turn(question, write_boxes(turn.answer, record.boxes, record.size))


def test_conversations_have_one_to_several_exchanges(tmp_path):
    run_build("coco", make_coco(tmp_path / "in", images=range(1, 30)), tmp_path / "out", tasks=("name", "locate"), turns=3)
    assert {len(record.turns) for record in records_of(tmp_path / "out")} == {1, 2, 3}


def test_every_no_has_its_yes_in_what_is_written(tmp_path):
    run_build("coco", make_coco(tmp_path / "in", images=range(1, 30)), tmp_path / "out", tasks=("presence", "verify", "count"))
    firsts = Counter(turn.answer[:2] for record in records_of(tmp_path / "out") for turn in record.turns)
    assert firsts["No"] == firsts["Ye"] > 50
    assert set(firsts) == {"No", "Ye"}
    starts = Counter(turn.answer[:2] for record in records_of(tmp_path / "out") for turn in record.turns[:1])
    assert 0.3 < starts["No"] / starts.total() < 0.7  # neither comes first as a rule


def test_pictures_of_the_evaluation_are_left_out(tmp_path):
    """By file name and by COCO id, in whatever data set they turn up."""
    make_refcoco(tmp_path / "refcoco")
    make_visual_genome(tmp_path / "vg")
    make_coco(tmp_path / "in", images=(581563, 581857, 9, 25, 30))
    (tmp_path / "names.txt").write_text("\n000000000009.jpg\ncoco:139\n")
    write_json(tmp_path / "val.json", {"images": [{"file_name": "COCO_val2014_000000000025.jpg", "id": 25}]})
    record = {"image": "val2014/000000000030.jpg", "id": "x"}
    (tmp_path / "eval.jsonl").write_text(json.dumps(record) + "\n")
    exclude = [tmp_path / "refcoco" / "refs(unc).p", *(tmp_path / name for name in ("names.txt", "val.json", "eval.jsonl"))]
    report = run_build("coco", tmp_path / "in", tmp_path / "out", exclude=exclude)
    assert (report["images"], report["excluded"]) == (5, 4)
    assert {record.image for record in records_of(tmp_path / "out")} == {"train2017/000000581857.jpg"}  # of RefCOCO's train
    assert run_build("visual-genome", tmp_path / "vg", tmp_path / "vg-out", exclude=exclude)["excluded"] == 1
    assert run_build("visual-genome", tmp_path / "vg", tmp_path / "vg-all")["excluded"] == 0

    make_flickr30k(tmp_path / "flickr")
    (tmp_path / "flickr" / "train.txt").write_text("1000092795\n1007129816\n")
    exclusions = Exclusions.read([tmp_path / "flickr" / "test.txt"])
    scenes = list(SOURCES["flickr30k"].read(Request(tmp_path / "flickr")))
    assert [exclusions.has(scene) for scene in scenes] == [False, True]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"ok.jpg\ncoco:x\n", "a.txt: line 2: must be a file name or coco:ID, got 'coco:x'"),
        ("a.jsonl", b'{"id": 1}\n', "a.jsonl: line 1: must be a record with its image"),
        ("a.json", b'{"pictures": []}', "a.json: neither COCO's layout nor refs of RefCOCO"),
        ("a.csv", b"", "an exclusion file ends in"),
        ("a.p", pickle.dumps([Path("x")]), "a.p: not a pickle of refs"),
    ],
)
def test_exclusion_files_that_are_none(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Exclusions.read([tmp_path / name])


def test_a_scene_that_cannot_be_asked_about_is_reported_and_counted(tmp_path):
    make_coco(tmp_path / "in", images=(9, 25))
    path = tmp_path / "in" / "annotations" / "instances_train2017.json"
    file = json.loads(path.read_text())
    for each in file["annotations"]:
        if each["image_id"] == 9:
            each["segmentation"] = {"size": [4, 4], "counts": [1, 15]}  # of another picture
    write_json(path, file)
    with pytest.raises(
        ValueError, match=r"coco: image 9 \(train2017/000000000009.jpg\): mask: its size 4 x 4 is not the image's"
    ):
        run_build("coco", tmp_path / "in", tmp_path / "out")
    report = run_build("coco", tmp_path / "in", tmp_path / "out", skip_bad=1)
    assert len(report["left out"]) == 1
    assert {record.image for record in records_of(tmp_path / "out")} == {"train2017/000000000025.jpg"}


def test_a_worker_that_dies_ends_the_build(tmp_path):
    make_coco(tmp_path / "in")
    with pytest.raises(RuntimeError, match="process"):
        run_build("coco", tmp_path / "in", tmp_path / "out", run=_run_to_death)


def _run_to_death(work):
    deadly = [replace(each, scenes=[_Killer()]) for each in work]
    yield from run_here(2)(deadly)


class _Killer(Shard):
    """Kills the process that unpickles it."""

    def __init__(self):
        super().__init__(0)

    def __reduce__(self):
        return (os._exit, (9,))
