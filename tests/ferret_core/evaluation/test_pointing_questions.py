"""PointQA and Visual7W: the published files are read as they are, questions are built, and answers graded as documented."""

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from ferret_core.cli import app
from ferret_core.data.build.scene import Scene, SceneObject
from ferret_core.evaluation import pointqa, visual7w
from ferret_core.evaluation.asking import sizes_below
from ferret_core.evaluation.benchmark import Item, Prediction
from ferret_core.evaluation.pointing import playground_scenes
from ferret_core.evaluation.predictions import read_predictions
from ferret_core.evaluation.runs import PREDICTIONS
from ferret_core.geometry import Box, ImageSize, Point
from ferret_core.predictor import FerretPredictor
from ferret_core.prompt import format_bins

SIZE = ImageSize(640, 480)


def size_of(name):
    return SIZE


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def thing(name, x, y, w, h, **more):
    return {"object_id": x, "names": [name], "synsets": [], "x": x, "y": y, "w": w, "h": h, **more}


def make_pointqa(root):
    """Two shirts that differ in picture 2407890, of which one sticks out; a question about cats in picture 17."""
    shirts = [thing("shirt", 10, 20, 100, 80, attributes=["red"]), thing("shirt", 600, 20, 90, 60, attributes=["grey"])]
    local = {
        "id": 2407890,
        "question": "What color is the shirt?",
        "all_ans": ["red", "gray"],
        "all_objs": shirts,
        "points": [{"x": 60, "y": 60, "ans": "red"}, {"x": 620, "y": 50, "ans": "gray"}],
    }
    doing = {**local, "question": "What action is the man doing?", "all_objs": [thing("man", 1, 1, 9, 9)] * 2}
    write(root / "LocalQA" / "localqa_dataset.json", {"2407890": [local, doing], "5": []})
    write(root / "LocalQA" / "localqa_testfinal_imgs.json", ["2407890"])
    twice = {
        "id": 17,
        "img_question": "How many cats are there?",
        "obj_question": "How many cats are there?",
        "super_question": "How many animals are there?",
        "general_question": "How many of these are there?",
        "ans": "2",
        "qtype": "howmany",
        "point": {"x": 50, "y": 40, "ans": "2"},
        "bbox": thing("cat", 30, 20, 40, 40),
        "obj_type": "cats",
    }
    write(root / "LookTwiceQA" / "looktwiceqa_dataset.json", {"17": [twice]})
    write(root / "LookTwiceQA" / "looktwiceqa_test_imgs.json", ["17"])
    return root


def make_visual7w(path):
    places = [(-1, 0, 50, 60), (100, 0, 50, 60), (200, 100, 50, 60), (300, 200, 400, 100)]
    boxes = [{"box_id": 7 + i, "name": "it", "x": x, "y": y, "width": w, "height": h} for i, (x, y, w, h) in enumerate(places)]
    pair = {"qa_id": 9, "type": "which", "question": "Which is shiny?", "answer": 8, "multiple_choices": [7, 9, 10]}
    image = {"image_id": 3, "filename": "v7w_3.jpg", "split": "test", "qa_pairs": [pair]}
    other = {**image, "image_id": 4, "split": "train", "qa_pairs": [{**pair, "qa_id": 10}]}
    write(path, {"dataset": "visual7w-pointing", "boxes": boxes, "images": [image, other]})
    return path


def test_local_questions_as_published(tmp_path):
    items = list(pointqa.read_pointqa(make_pointqa(tmp_path), size_of))
    red, gray, man, _ = items
    assert red.question == gray.question == "What color is the shirt [region0]?"
    assert man.question == "What action is the man [region0] doing?"
    assert (red.image, red.group, red.regions) == ("2407890.jpg", "local testfinal, point", (Point(60, 60),))
    assert dict(gray.expected) == {"kind": "local", "answer": "gray", "others": ["red"], "boxes": [[600, 20, 640, 80]]}
    boxed = list(pointqa.read_pointqa(tmp_path, size_of, form="box"))
    assert boxed[1].regions == (Box(600, 20, 640, 80),)  # within the picture


@pytest.mark.parametrize(("asked", "what"), [("obj", "cats"), ("super", "animals"), ("general", "of these")])
def test_counting_as_published(tmp_path, asked, what):
    (item,) = pointqa.read_pointqa(make_pointqa(tmp_path), size_of, "counting", asked=asked)
    assert item.question == f"How many {what} are there? One of them is [region0]."
    assert (item.regions, item.expected["answer"]) == ((Point(50, 40),), "2")


def test_broken_pointqa_is_named(tmp_path):
    make_pointqa(tmp_path)
    with pytest.raises(ValueError, match="--kind: must be one of local, counting"):
        list(pointqa.read_pointqa(tmp_path, size_of, "global"))
    with pytest.raises(ValueError, match=r"localqa_val_imgs.json is not there.*--split"):
        list(pointqa.read_pointqa(tmp_path, size_of, split="val"))
    write(tmp_path / "LocalQA" / "localqa_testfinal_imgs.json", ["4"])
    with pytest.raises(ValueError, match="picture 4: field '4' is missing"):
        list(pointqa.read_pointqa(tmp_path, size_of))


@pytest.mark.parametrize(
    ("kind", "answer", "right", "exact"),
    [
        ("local", "The shirt [1, 2, 3, 4] is grey.", 1, 0),
        ("local", "Gray.", 1, 1),
        ("local", "It is gray and red.", 0, 0),
        ("local", "It is reddish gray.", 1, 0),
        ("local", "It is red.", 0, 0),
        ("counting", "There are two cats [10, 20, 30, 40], [1, 2, 3, 4].", 1, 0),
        ("counting", "2", 1, 1),
        ("counting", "Two.", 1, 1),
        ("counting", "12 of 2", 0, 0),
        ("counting", "There is a cat.", 0, 0),
        ("counting", None, 0, 0),
    ],
)
def test_answers_about_the_object_at_a_point(kind, answer, right, exact):
    expected = {"kind": kind, "answer": "gray" if kind == "local" else "2", "others": ["red"]}
    tally = pointqa.grade(Prediction(Item(id="1", image="", size=SIZE, question="?", expected=expected), answer))
    assert (tally["right"], tally["exact"]) == (right, exact)


def test_counting_is_built_where_all_are_marked():
    objects = tuple(SceneObject(box=Box(x, 10, x + 40, 60), name=name) for x, name in ((10, "dog"), (80, "cat"), (200, "dog")))
    scene = Scene(id="1", image="1.jpg", size=SIZE, objects=objects, checked=("dog",))
    (item,) = pointqa.build_counting([scene])  # nobody looked for all cats
    assert item.question == "How many dogs are there? One of them is [region0]."
    assert item.expected["answer"] == "2"
    assert item.regions[0] in (Point(30, 35), Point(220, 35))


def test_which_of_four_boxes_as_published(tmp_path):
    (item,) = visual7w.read_visual7w(make_visual7w(tmp_path / "v7w.json"), size_of)
    assert item.question == "Which is shiny? Choose from [region0], [region1], [region2], [region3]."
    assert item.image == "v7w_3.jpg"
    assert set(item.regions) == {Box(0, 0, 49, 60), Box(100, 0, 150, 60), Box(200, 100, 250, 160), Box(300, 200, 640, 300)}
    assert item.regions[item.expected["choice"]] == Box(100, 0, 150, 60) == item.boxes[0]
    orders = {next(visual7w.read_visual7w(tmp_path / "v7w.json", size_of, seed=seed)).expected["choice"] for seed in range(20)}
    assert orders == {0, 1, 2, 3}
    with pytest.raises(ValueError, match="--split: must be one of"):
        visual7w.read_visual7w(tmp_path / "v7w.json", size_of, "testA")
    write(tmp_path / "v7w.json", [])
    with pytest.raises(ValueError, match="must hold images and boxes"):
        visual7w.read_visual7w(tmp_path / "v7w.json", size_of)


@pytest.mark.parametrize(
    ("box", "right", "strict"),
    [
        ((100, 0, 150, 60), 1, 1),
        ((90, 0, 110, 60), 1, 0),
        ((200, 100, 250, 160), 0, 0),
        ((400, 400, 410, 410), 0, 0),
        (None, 0, 0),
    ],
)
def test_a_choice_is_the_candidate_that_is_overlapped_most(tmp_path, box, right, strict):
    (item,) = visual7w.read_visual7w(make_visual7w(tmp_path / "v7w.json"), size_of)
    tally = visual7w.grade(Prediction(item, f"It is {format_bins(Box(*box), SIZE)}." if box else "The second."))
    assert (tally.get("right", 0), tally.get("strict", 0)) == (right, strict)
    assert tally.get("without a box", 0) == (box is None)


def test_which_of_four_is_built():
    items = list(visual7w.build_which(playground_scenes(12)))
    scenes = {scene.image: scene for scene in playground_scenes(12)}
    assert items
    for item in items:
        asked = [each for each in scenes[item.image].objects if each.box == item.boxes[0]]
        assert item.question.split(".")[0].split("?")[0].endswith(f" the {asked[0].name}")
        assert len({*item.regions}) == 4
        assert item.regions[item.expected["choice"]] == item.boxes[0]
    assert items == list(visual7w.build_which(playground_scenes(12)))


def test_the_command_line_asks_both(tmp_path, monkeypatch, tiny_model, tiny_processor):
    predictor = FerretPredictor(tiny_model, tiny_processor)
    monkeypatch.setattr(FerretPredictor, "from_pretrained", classmethod(lambda cls, name: predictor))
    for name in ("2407890.jpg", "17.jpg", "v7w_3.jpg"):
        Image.new("RGB", SIZE).save(tmp_path / name)
    assert sizes_below(tmp_path)("17.jpg") == SIZE
    data, file = make_pointqa(tmp_path / "Datasets"), make_visual7w(tmp_path / "v7w.json")
    for i, (command, asked) in enumerate(
        [
            (["pointqa", str(data)], 4),
            (["pointqa", str(data), "--kind", "counting", "--form", "box"], 1),
            (["visual7w", str(file)], 1),
        ]
    ):
        output = tmp_path / f"out{i}"
        result = CliRunner().invoke(app, ["eval", *command, "--images", str(tmp_path), "--output", str(output)])
        assert result.exit_code == 0, result.output
        assert len(list(read_predictions(output / PREDICTIONS))) == asked
        assert "<img" in (output / "gallery.html").read_text()
        result = CliRunner().invoke(app, ["eval", *command, "--output", str(output)])
        assert "--images" in str(result.exception)
