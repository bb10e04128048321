"""An evaluation that is killed goes on without losing or repeating a row; its report is a function of its answers."""

import json
import multiprocessing
import os
import random
import signal
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
from PIL import Image
from typer.testing import CliRunner

from ferret_core.cli import app
from ferret_core.data.playground import playground_example
from ferret_core.evaluation import lvis_referring
from ferret_core.evaluation.asking import ask_here, pictures_below, predict_on_platform, predict_with
from ferret_core.evaluation.benchmark import Benchmark, Figure, Item, Prediction, ratio
from ferret_core.evaluation.predictions import PredictionFile, read_predictions
from ferret_core.evaluation.results import markdown
from ferret_core.evaluation.runs import PREDICTIONS, Run, ask_missing, write_report
from ferret_core.evaluation.scores import score
from ferret_core.geometry import Box, ImageSize, Mask, Point
from ferret_core.predictor import FerretPredictor

SIZE = ImageSize(64, 48)


def echo(prediction):
    return {"items": 1.0, "right": float(prediction.answer == prediction.item.expected["answer"])}


ECHO = Benchmark(
    name="echo",
    protocol="An answer is right if it is the expected one.",
    grade=echo,
    figures=(Figure(name="accuracy", value=ratio("right", "items"), paper={"even": {"7B": 0.5}}),),
    quality="right",
)


def items(count=50):
    return [
        Item(
            id=f"q{i}",
            group="odd" if i % 2 else "even",
            image=f"{i % 7}.png",
            size=SIZE,
            question=f"What is it? {i}",
            expected={"answer": f"What is it? {i}"},
        )
        for i in range(count)
    ]


def ask(batch, max_new_tokens):
    return [item.question if int(item.id[1:]) % 3 else "Nothing." for item in batch]


def killed_while_asking(directory, after):
    asked = 0

    def until_killed(batch, max_new_tokens):
        nonlocal asked
        asked += 1
        if asked > after:
            with (directory / PREDICTIONS).open("a") as file:
                file.write('{"id": "q49", "gro')  # the disk took part of a row
            os.kill(os.getpid(), signal.SIGKILL)
        return ask(batch, max_new_tokens)

    ask_missing(directory, ECHO, items(), predict_with(until_killed, 4))


def test_a_killed_evaluation_goes_on(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for directory in (whole, killed):
        Run.of(ECHO, items(), "it", "1").start(directory, items())
    ask_missing(whole, ECHO, items(), predict_with(ask, 50))
    for after in (0, 3, 5):
        process = multiprocessing.get_context("fork").Process(target=killed_while_asking, args=(killed, after))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    made = [prediction.item.id for prediction in read_predictions(killed / PREDICTIONS)]
    assert len(made) == len(set(made)) == 8 * 4

    asked = []

    def remember(batch, max_new_tokens):
        asked.extend(item.id for item in batch)
        return ask(batch, max_new_tokens)

    ask_missing(killed, ECHO, items(), predict_with(remember, 4))
    assert sorted(asked + made) == sorted(item.id for item in items())
    assert write_report(killed, ECHO) == write_report(whole, ECHO)
    for name in ("report.json", "gallery.html"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def test_an_unfinished_evaluation_says_so(tmp_path):
    Run.of(ECHO, items(), "it", "1").start(tmp_path, items())
    ask_missing(tmp_path, ECHO, items(20), predict_with(ask, 4))
    assert "- answered: 20 of 50 questions" in write_report(tmp_path, ECHO)


def test_a_directory_goes_on_only_with_the_same(tmp_path):
    Run.of(ECHO, items(), "it", "1").start(tmp_path, items())
    Run.of(ECHO, items(), "it", "1").start(tmp_path, items())
    with pytest.raises(ValueError, match="revision '1', not '2'; use another --output"):
        Run.of(ECHO, items(), "it", "2").start(tmp_path, items())
    with pytest.raises(ValueError, match="items 50, not 49; questions"):
        Run.of(ECHO, items(49), "it", "1").start(tmp_path, items(49))
    with pytest.raises(ValueError, match="no questions"):
        Run.of(ECHO, [], "it", "1")
    with pytest.raises(ValueError, match="two questions have the id 'q0'"):
        Run.of(ECHO, [*items(), items()[0]], "it", "1")


def test_a_directory_holds_questions_of_its_benchmark():
    stranger = Item(id="7", question="?", expected={})
    with pytest.raises(ValueError, match="item 7: is not a question of lvis: KeyError"):
        Run.of(lvis_referring.BENCHMARK, [stranger], "it", "1")


def test_what_cannot_be_asked_has_no_answer_and_stops_nobody(tmp_path, tiny_model, tiny_processor, caplog):
    Image.new("RGB", SIZE).save(tmp_path / "0.png")
    asked = [
        Item(id="1", image="0.png", size=SIZE, question="What is it?"),
        Item(id="2", image="0.png", size=SIZE, question="What is it? " * 2000),
        Item(id="3", image="0.png", size=SIZE, question="What is [region0]?", regions=(Box(9, 9, 1, 1),)),
    ]
    pictures, predictor = pictures_below(tmp_path), FerretPredictor(tiny_model, tiny_processor)

    class Client:
        set_image = predictor.set_image

        def ask(self, question, regions, **sampling):
            return predictor.ask(question, regions, **sampling)

    for predict in (
        predict_with(ask_here(predictor, pictures, 2), 3),
        predict_on_platform(lambda: nullcontext(Client()), pictures, 2),
    ):
        answers = {each.item.id: each.answer for batch in predict(asked, 4) for each in batch}
        assert answers.pop("1") is not None
        assert answers == {"2": None, "3": None}
    assert "cannot be asked: What is [region0]?: " in caplog.text
    assert "cannot be asked: 3: " in caplog.text
    with pytest.raises(ValueError, match=r"item 1: .*0\.png is not there|neither"):
        ask_here(predictor, pictures_below(tmp_path / "elsewhere"), 2)(asked, 4)


def test_two_processes_do_not_write_one_file(tmp_path):
    path = tmp_path / PREDICTIONS
    with PredictionFile(path), pytest.raises(ValueError, match="another process is writing"):
        PredictionFile(path)
    with PredictionFile(path) as file:
        file.append([Prediction(items()[0], "a")])
        with pytest.raises(ValueError, match="is there already"):
            file.append([Prediction(items()[0], "b")])


@pytest.mark.parametrize(
    ("rows", "message"),
    [("{}\n", "line 1: not a prediction: KeyError"), ("[]\n", "line 1"), ("no\n", "line 1: not a prediction")],
)
def test_a_broken_row_is_named(tmp_path, rows, message):
    (tmp_path / PREDICTIONS).write_text(rows)
    with pytest.raises(ValueError, match=message):
        list(read_predictions(tmp_path / PREDICTIONS))


def test_a_row_holds_all_that_scoring_needs():
    regions = (Point(3, 4), Box(1, 2, 30, 40), Mask.from_array(Box(5, 5, 9, 9).to_mask(SIZE)))
    item = Item(
        id="ä",
        group="g",
        image="a/b.png",
        size=SIZE,
        question="[region0]?",
        regions=regions,
        expected={"boxes": [[1, 2, 3, 4]]},
    )
    row = json.loads(json.dumps(Prediction(item, None).to_json()))
    assert Prediction.from_json(row) == Prediction(item, None)
    assert item.boxes == (Box(1, 2, 3, 4),)


def test_intervals_hold_what_they_promise():
    """Of many samples of answers that are right with probability 0.7, about 95 % have 0.7 in their interval."""
    rng, inside = random.Random(0), 0
    for _ in range(60):
        answers = ["yes" if rng.random() < 0.7 else "no" for _ in range(100)]
        made = [
            Prediction(Item(id=str(i), image="", question="", expected={"answer": "yes"}), answer)
            for i, answer in enumerate(answers)
        ]
        (found,) = score(ECHO, made).scores
        assert found.low < found.value == answers.count("yes") / 100 < found.high
        inside += found.low <= 0.7 <= found.high
    assert 52 <= inside <= 60


def test_the_order_of_predictions_does_not_matter():
    made = [Prediction(item, answer) for item, answer in zip(items(), ask(items(), 1), strict=True)]
    text = markdown(ECHO, score(ECHO, made), {})
    random.Random(1).shuffle(made)
    assert markdown(ECHO, score(ECHO, made), {}) == text
    assert "| even | accuracy | 64.00% |" in text
    assert text.count("50.00% |") == 1  # the paper's, beside the group that it has a figure for


class Platform:
    """A client that remembers one picture, as ours do, and answers with what it was asked about."""

    def __init__(self):
        self.picture = None

    def set_image(self, image):
        self.picture = image.getpixel((0, 0))

    def ask(self, question, regions, **sampling):
        assert sampling == {"max_new_tokens": 7, "temperature": 0.0}
        return type("Answer", (), {"text": f"{question} {self.picture} {len(regions)}"})


def test_many_are_asked_at_a_time_each_about_its_own_picture(tmp_path):
    for i in range(7):
        Image.new("RGB", SIZE, (i, i, i)).save(tmp_path / f"{i}.png")
    predict = predict_on_platform(lambda: nullcontext(Platform()), pictures_below(tmp_path), 5)
    answers = {each.item.id: each.answer for batch in predict(items(), 7) for each in batch}
    assert answers == {item.id: f"{item.question} {(i % 7,) * 3} 0" for i, item in enumerate(items())}


class Client:
    """Of a platform that says `say` of each question."""

    def __init__(self, say):
        self.say = say

    def set_image(self, image):
        pass

    def ask(self, question, regions, **sampling):
        return SimpleNamespace(text=self.say(question))


def predictions_of(say, tmp_path, at_once):
    Image.new("RGB", SIZE).save(tmp_path / "0.png")
    return predict_on_platform(lambda: nullcontext(Client(say)), pictures_below(tmp_path), at_once)


def test_a_platform_that_has_had_too_much_is_asked_later(tmp_path):
    class TooManyError(RuntimeError):
        retry_after = 0.01

    calls = []

    def say(question):
        calls.append(question)
        if calls.count(question) < 3:
            raise TooManyError
        return question

    asked = [replace(item, image="0.png") for item in items(5)]
    predict = predictions_of(say, tmp_path, at_once=2)
    assert {each.answer for batch in predict(asked, 4) for each in batch} == {item.question for item in asked}
    assert len(calls) == 15


def test_what_was_answered_before_a_platform_broke_down_is_there(tmp_path):
    def say(question):
        if question.endswith("3"):
            raise RuntimeError("broken down")
        return question

    asked = [replace(item, image="0.png") for item in items(5)]
    with pytest.raises(RuntimeError, match="broken down"):
        ask_missing(tmp_path, ECHO, asked, predictions_of(say, tmp_path, at_once=1))
    assert {"q0", "q1", "q2"} <= {each.item.id for each in read_predictions(tmp_path / PREDICTIONS)} <= {"q0", "q1", "q2", "q4"}


def test_rows_of_others_need_no_last_line_feed(tmp_path):
    rows = [json.dumps(Prediction(item, "a").to_json()) for item in items(2)]
    path = tmp_path / PREDICTIONS
    path.write_text("\n".join(rows) + "\n\n" + json.dumps({"id": "last", "answer": "b", "expected": {"answer": "b"}}))
    assert [each.item.id for each in read_predictions(path)] == ["q0", "q1", "last"]
    with PredictionFile(path) as file:
        file.append([Prediction(items(4)[3], "lone \ud800")])
    assert [each.item.id for each in read_predictions(path)] == ["q0", "q1", "last", "q3"]
    assert "- answered: 4 questions" in write_report(tmp_path, ECHO)
    assert "ud800" in (tmp_path / "gallery.html").read_text()


def test_predictions_that_cannot_be_scored_are_named(tmp_path):
    (tmp_path / PREDICTIONS).write_text("")
    with pytest.raises(ValueError, match=r"predictions\.jsonl: has no predictions"):
        write_report(tmp_path, ECHO)
    (tmp_path / PREDICTIONS).write_text('{"id": 7, "answer": "a", "group": null}\n')
    with pytest.raises(ValueError, match="item 7: is not a question of echo: KeyError"):
        write_report(tmp_path, ECHO)
    Run.of(ECHO, items(), "it", "1").start(tmp_path)
    result = CliRunner().invoke(app, ["eval", "score", str(tmp_path), "--benchmark", "lvis"])
    assert "there is no benchmark 'echo'" in str(result.exception)


def test_pictures_are_looked_for(tmp_path):
    picture = pictures_below(tmp_path)
    with pytest.raises(ValueError, match=r"neither .*val2014/0.png nor .*0.png is there; --images"):
        picture(Item(id="1", image="val2014/0.png", question=""))
    Image.new("RGB", SIZE).save(tmp_path / "0.png")
    assert picture(Item(id="1", image="val2014/0.png", size=SIZE, question="")).size == SIZE
    with pytest.raises(ValueError, match="is 64 x 48 pixels, but the data set says 48 x 64"):
        picture(Item(id="1", image="0.png", size=ImageSize(48, 64), question=""))


def test_the_command_line_asks_a_model_and_scores_again(tmp_path, monkeypatch, tiny_model, tiny_processor):
    predictor = FerretPredictor(tiny_model, tiny_processor)
    monkeypatch.setattr(FerretPredictor, "from_pretrained", classmethod(lambda cls, name: predictor))
    questions = tmp_path / "coco_pope_random.json"
    rows = [
        {"question_id": i, "image": f"{i // 2}.png", "text": "Is there a dog?", "label": ("yes", "no")[i % 2]} for i in range(6)
    ]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for i in range(3):
        playground_example("test", i).image.save(tmp_path / f"{i}.png")
    output = tmp_path / "out"
    command = ["eval", "pope", str(questions), "--output", str(output), "--batch-size", "2", "--images", str(tmp_path)]
    first = CliRunner().invoke(app, [*command])
    assert first.exit_code == 0, first.output
    report = (output / "report.md").read_text()
    assert "- answered: 6 of 6 questions" in report
    assert (output / "gallery.html").read_text().count("<img") == 3 + 6  # the wrong ones, and all at random
    made = list(read_predictions(output / PREDICTIONS))
    assert [p.answer for p in made] == ask_here(predictor, pictures_below(tmp_path), 3)([p.item for p in made], 64)

    monkeypatch.setattr(FerretPredictor, "from_pretrained", None)  # nobody is asked again
    (output / "report.md").unlink()
    again = CliRunner().invoke(app, ["eval", "score", str(output)])
    assert again.exit_code == 0, again.output
    assert (output / "report.md").read_text() == report


def test_the_command_line_scores_answers_of_the_original(tmp_path, golden):
    recorded = golden / "eval"
    command = ["eval", "refexp", str(recorded / "refexp" / "finetune_refcocog_test.json"), "--split", "test"]
    result = CliRunner().invoke(app, [*command, "--answers", str(recorded / "refexp" / "pred"), "--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "| refcocog test | Acc@0.5 | 60.00% |" in result.output
    assert "| 84.76% | 86.34% |" in result.output
    figures = json.loads((tmp_path / "report.json").read_text())["scores"]
    assert {figure["paper"].get("13B") for figure in figures if figure["figure"] == "Acc@0.5"} == {None, 0.8634}
    result = CliRunner().invoke(app, [*command, "--output", str(tmp_path / "new")])
    assert "--images" in str(result.exception)
