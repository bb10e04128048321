"""Evaluation on the playground: right answers count as right, wrong ones do not, and what was found is told."""

import re
from collections import Counter
from xml.etree import ElementTree

import pytest
import torch
from typer.testing import CliRunner

from ferret_core.cli import app
from ferret_core.data.playground import GESTURES, KINDS, NAMED, playground_example
from ferret_core.evaluation.answers import Question, answer_all
from ferret_core.evaluation.benchmark import Prediction
from ferret_core.evaluation.playground import confusions, grade, playground_items, playground_picture, to_item
from ferret_core.evaluation.results import chart
from ferret_core.evaluation.scores import Score, Scores
from ferret_core.grounding import find_spans
from ferret_core.predictor import FerretPredictor
from ferret_core.prompt import write_boxes


def right_answer(example):
    return write_boxes(example.record.turns[0].answer, example.record.boxes, example.record.size)


def caption(index):
    example = playground_example("test", index, 1, kinds=("describe",))
    return example, right_answer(example)


def graded(example, answer):
    return grade(Prediction(to_item(example), answer))


def counted(example, answer):
    """How often (what, right or not)."""
    tally = graded(example, answer)
    asked = {name.removeprefix("asked "): count for name, count in tally.items() if name.startswith("asked ")}
    right = {(name, True): tally[name] for name in asked}
    return Counter(right | {(name, False): count - tally[name] for name, count in asked.items()})


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "follow_up"])
def test_right_answers_are_right(kind):
    for index in range(25):
        example = playground_example("test", index, 1, kinds=(kind,))
        if example.kinds:
            assert graded(example, right_answer(example))["right"], right_answer(example)
            assert not graded(example, "It is.")["right"]


def test_counted_things_have_no_order_and_located_ones_have():
    for index, kind in [(i, kind) for kind in ("count", "locate") for i in range(60)]:
        example = playground_example("test", index, 1, kinds=(kind,))
        if example.kinds and len(example.record.boxes) == 2:
            answer = right_answer(example)
            first, second = re.findall(r"\[.*?\]", answer)
            swapped = answer.replace(first, "[]").replace(second, first).replace("[]", second)
            assert graded(example, swapped)["right"] == (kind == "count")


def test_captioned_objects_count_one_by_one():
    example, answer = caption(3)
    objects = len(example.scene.objects)
    assert (
        counted(example, answer)["captioned objects", True] == counted(example, answer)["objects in captions", True] == objects
    )
    assert objects > 2

    box = re.search(r" \[.*?\]", answer)[0]
    without_one = counted(example, answer.replace(box, "", 1))
    assert without_one["captioned objects", True] == objects - 1
    assert without_one["captioned objects", False] == 0
    assert without_one["objects in captions", False] == 1

    thing = next(o.thing for o in example.scene.objects if o.thing.countable)
    misnamed = counted(example, re.sub(rf"\b({thing.plural}|{thing.name})\b", "gizmo", answer))
    same = sum(o.thing == thing for o in example.scene.objects)
    assert misnamed["captioned objects", False] == misnamed["objects in captions", False] == same

    twice = counted(example, answer[:-1] + f" and {answer[len('The image shows ') :]}")
    assert twice["captioned objects", True] == twice["captioned objects", False] == objects  # each thing is there once

    elsewhere = counted(example, re.sub(r"\[.*?\]", "[0, 0, 9, 9]", answer))
    assert elsewhere["captioned objects", False] == objects


def test_answers_all_at_once_are_those_one_by_one():
    """Of different lengths, with and without regions, about pictures of different sizes; some end long before others."""
    predictor = FerretPredictor.from_pretrained("playground", device="cpu")
    images = [playground_example("test", i).image for i in range(2)]
    asked = [(i, kind) for i in range(2) for kind in ("name", "describe", "relate", "locate")]
    examples = [(i, playground_example("test", i, 1, kinds=(kind,))) for i, kind in asked]
    questions = [Question(image=i, text=e.record.turns[0].question, regions=e.regions) for i, e in examples if e.kinds]
    one_by_one = []
    for question in questions:
        predictor.set_image(images[question.image])
        one_by_one.append(predictor.ask(question.text, question.regions, temperature=0).text)
    assert max(map(len, one_by_one)) > 2 * min(map(len, one_by_one))
    assert answer_all(predictor, images, questions, batch_size=5) == one_by_one
    cut = answer_all(predictor, images, questions, max_new_tokens=5)
    assert all(whole.startswith(text) and len(text) < len(whole) for text, whole in zip(cut, one_by_one, strict=True))
    assert answer_all(predictor, images, []) == []


def test_another_style_first_scene_and_seed(tiny_model, tiny_processor):
    items = list(playground_items(2, first=40, seed=7, style="flat"))
    assert {item.id.rsplit("-", 2)[0] for item in items if item.expected["kind"] == "name"} == {
        "playground-test-40-7",
        "playground-test-41-7",
    }
    assert {item.group for item in items} == {"flat"}
    drawn = playground_example("test", 40, style="flat", seed=7).image
    assert playground_picture(items[0]).tobytes() == drawn.tobytes()
    assert len({item.id for item in items}) == len(items)
    assert sum(item.expected["kind"] == "name" for item in items) == 10


def test_scenes_are_asked_what_they_were_alone():
    """Conversations about a scene that is drawn once are those about a scene of their own."""
    for item in playground_items(3):
        index, kind = int(item.image.split("/")[2]), item.expected["kind"]
        gestures = (item.regions[0].kind,) if kind == "name" else GESTURES
        alone = playground_example("test", index, 1, kinds=(kind,), gestures=gestures)
        assert to_item(alone, item.image) == item


def test_what_was_called_what():
    items = [item for item in playground_items(2) if item.expected["kind"] == "name"]
    right = [Prediction(item, item.expected["answer"]) for item in items]
    assert confusions(right).notes == confusions([Prediction(item, None) for item in items]).notes == ()
    one, *others = (NAMED[word] for item in items for word in re.findall(r"\w+(?= \[)", item.expected["answer"]))
    _, text = confusions([Prediction(items[0], "It is a gizmo."), *right[1:], Prediction(items[0], right[-1].answer)]).notes
    assert f"| {one.name} | It is a gizmo. | 1 |\n| {one.name} | {others[-1].name} | 1 |" in text


def test_the_chart_shows_who_reaches_the_target():
    values = {"named (box)": (0.97, 0.97), "yes or no": (0.96, 0.97), "count": (0.5, None)}
    scores = [
        Score(group="", figure=name, value=value, low=value - 0.1, high=1.0, percent=True, target=target)
        for name, (value, target) in values.items()
    ]
    scores.append(Score(group="", figure="score", value=7.0, low=6.0, high=8.0, percent=False))
    root = ElementTree.fromstring(chart(Scores(groups=[], scores=scores)))
    fills = [r.get("fill") for r in root.iter("{http://www.w3.org/2000/svg}rect")][2::2]
    assert fills == ["#2b8a3e", "#c2410c", "#8a939e"]  # reached, not reached, without one
    texts = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[:6] == ["named (box)", "97.0%", "yes or no", "96.0%", "count", "50.0%"]


def test_the_command_line(tmp_path, monkeypatch, tiny_model, tiny_processor):
    monkeypatch.setattr(
        FerretPredictor, "from_pretrained", classmethod(lambda cls, name: FerretPredictor(tiny_model, tiny_processor))
    )
    torch.manual_seed(0)
    command = ["eval", "playground", "--scenes", "1", "--first", "3", "--seed", "2"]
    result = CliRunner().invoke(app, [*command, "--sprites", "ink", "--output", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert re.search(r"^\| ink \| named \(box\) \| 0.00% \| 0.00% to 0.00% \| 1 \| 97% \|$", result.output, re.MULTILINE)
    files = ("report.md", "report.json", "scores.svg", "gallery.html")
    first = {name: (tmp_path / "out" / name).read_bytes() for name in files}
    assert first["gallery.html"].count(b"<img") >= len(list(playground_items(1, 3, 2, "ink")))
    answered = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    (tmp_path / "out" / "predictions.jsonl").write_text("".join(f"{line}\n" for line in answered[:5]) + answered[5][:30])
    again = CliRunner().invoke(app, [*command, "--sprites", "ink", "--output", str(tmp_path / "out")])
    assert again.exit_code == 0, again.output
    assert {name: (tmp_path / "out" / name).read_bytes() for name in files} == first
    assert (tmp_path / "out" / "predictions.jsonl").read_text().splitlines() == answered
    other = CliRunner().invoke(app, [*command, "--sprites", "flat", "--output", str(tmp_path / "out")])
    assert "use another --output" in str(other.exception)
    result = CliRunner().invoke(app, [*command, "--sprites", "oil"])
    assert isinstance(result.exception, ValueError)
    assert "neither one of 3d, flat, ink, comic nor a directory" in str(result.exception)
    monkeypatch.chdir(tmp_path)
    unkept = CliRunner().invoke(app, [*command, "--sprites", "ink"])
    assert unkept.exit_code == 0, unkept.output
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_phrases_of_right_captions_are_things():
    for index in range(20):
        example, answer = caption(index)
        assert len(find_spans(answer, example.record.size)) == len(example.scene.objects)
