"""Robustness and round trips: the same objects, and names that come back."""

import numpy as np
import pytest
from typer.testing import CliRunner

from ferret_core.cli import app
from ferret_core.evaluation import pointing
from ferret_core.evaluation.benchmark import Prediction
from ferret_core.evaluation.playground import playground_picture
from ferret_core.evaluation.predictions import read_predictions
from ferret_core.evaluation.runs import PREDICTIONS, Run
from ferret_core.evaluation.scores import score
from ferret_core.geometry import Box, ImageSize
from ferret_core.predictor import FerretPredictor
from ferret_core.prompt import format_bins

FORMS = {"point", "box", "scribble", "polygon", "mask", *(f"box, off by up to {each}" for each in ("10%", "20%", "40%"))}


def test_every_object_is_pointed_at_in_every_way():
    items = list(pointing.robustness_items(pointing.playground_scenes(3)))
    objects = sum(len(scene.objects) for scene in pointing.playground_scenes(3))
    assert len({item.id for item in items}) == len(items) == objects * len(FORMS)
    assert {item.group for item in items} == FORMS
    for item in items:
        assert playground_picture(item).size == item.size
        inside = item.regions[0].to_mask(item.size)
        thing = item.boxes[0].to_mask(item.size)
        assert (inside & thing).any()
    assert items == list(pointing.robustness_items(pointing.playground_scenes(3)))
    assert items != list(pointing.robustness_items(pointing.playground_scenes(3), seed=1))


def test_jitter_keeps_its_measure():
    rng, size, box = np.random.default_rng(0), ImageSize(500, 500), Box(100, 100, 200, 300)
    moved = np.array([pointing.jittered(box, 0.1, size, rng).coordinates(size) for _ in range(200)])
    off = np.abs(moved - box.coordinates(size))
    assert (off <= [10.05, 20.05, 10.05, 20.05]).all()
    assert (off.max(axis=0) > [8, 16, 8, 16]).all()
    assert pointing.jittered(Box(0, 0, 500, 500), 0.4, size, rng).clamp(size).area > 0


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("It is a dog [1, 2, 30, 40].", "dog"),
        ("It is an ice cream.", "ice cream"),
        ("They are blueberries [1, 2, 30, 40].", "blueberries"),
        ("a red car", "red car"),
        ("", ""),
    ],
)
def test_what_an_answer_names(answer, name):
    assert pointing.name_in(answer, ImageSize(100, 100)) == name


def test_a_round_trip():
    items = list(pointing.round_trip_items(pointing.playground_scenes(6)))
    scenes = {scene.image: scene for scene in pointing.playground_scenes(6)}
    assert items
    for item in items:
        names = [thing.name for thing in scenes[item.image].objects]
        assert names.count(item.expected["name"]) == 1
    first, second, *rest = items
    named = [
        Prediction(first, f"It is a {first.expected['name']}."),
        Prediction(second, "It is a gizmo."),
        Prediction(rest[0], ""),
    ]
    there, lost = pointing.trip_back(named)  # of nothing nobody can ask where it is
    assert lost.question == "Where is the gizmo?"
    assert there.regions == ()
    right = format_bins(there.boxes[0], there.space)
    made = [Prediction(there, f"It is at {right}."), Prediction(lost, "It is not there.")]
    found = {each.figure: each.value for each in score(pointing.ROUND_TRIP, made).scores}
    assert found["back"] == found["named right"] == 0.5
    assert found["back, of those named right"] == 1
    assert 0.4 < found["mean IoU"] <= 0.5


def test_the_command_line_makes_the_trip(tmp_path, monkeypatch, tiny_model, tiny_processor):
    predictor = FerretPredictor(tiny_model, tiny_processor)
    monkeypatch.setattr(FerretPredictor, "from_pretrained", classmethod(lambda cls, name: predictor))
    command = ["eval", "roundtrip", "--scenes", "2", "--output", str(tmp_path)]
    for _ in range(2):  # the second time all is answered
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        assert "# roundtrip-names" in result.output
        assert "# roundtrip\n" in result.output
    there, back = (list(read_predictions(each / PREDICTIONS)) for each in (tmp_path, tmp_path / "then"))
    assert [item.question for item in pointing.trip_back(there)] == [prediction.item.question for prediction in back]
    assert Run.load(tmp_path / "then").benchmark == "roundtrip"
    result = CliRunner().invoke(app, [*command, "--answers", str(tmp_path)])
    assert "--answers: the original has no benchmark" in str(result.exception)


def test_agreement_is_of_the_names_that_are_given():
    items = [item for item in pointing.robustness_items(pointing.playground_scenes(1)) if "-0-" in item.id]
    box = format_bins(items[0].boxes[0], items[0].space)
    words = {"point": f"It is a Dog {box}.", "box": "It is a dog.", "scribble": "It is a cat.", "mask": "", "polygon": ""}
    made = [Prediction(item, words.get(item.group, "It is a dog.")) for item in items]
    joint = pointing.agreement(made)
    same = {name: [tally["same"] for tally in tallies] for name, tallies in joint.tallies.items()}
    assert same["point and box"] == same["box and box, off by up to 40%"] == [1]
    assert same["box and scribble"] == same["all ways"] == same["all gestures"] == [0]
    assert same["polygon and mask"] == [0]  # nothing is not a name
    assert len(same) == 2 + 10 + 3
    report = score(pointing.ROBUSTNESS, made)
    assert {each.figure for each in report.scores if each.group == "point and box"} == {"same name"}
    assert "point and box" not in pointing.agreement(made[1:]).tallies  # an object that was asked about in one way alone


def test_a_score_of_the_playground_draws_its_pictures_again(tmp_path, monkeypatch, tiny_model, tiny_processor):
    predictor = FerretPredictor(tiny_model, tiny_processor)
    monkeypatch.setattr(FerretPredictor, "from_pretrained", classmethod(lambda cls, name: predictor))
    command = ["eval", "robustness", "--scenes", "1", "--output", str(tmp_path)]
    assert CliRunner().invoke(app, command).exit_code == 0
    gallery = (tmp_path / "gallery.html").read_text()
    assert "<img" in gallery
    (tmp_path / "gallery.html").unlink()
    result = CliRunner().invoke(app, ["eval", "score", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "gallery.html").read_text() == gallery
