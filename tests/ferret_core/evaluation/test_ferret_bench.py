"""Ferret-Bench: the published files are read, the judge is asked what it should be, its reviews become a score."""

import json
import threading

import pytest
from PIL import Image
from typer.testing import CliRunner

from ferret_core.checkpoint.revision import revision
from ferret_core.cli import app
from ferret_core.data.build.language_model import LanguageModel
from ferret_core.evaluation.benchmark import Item, Prediction
from ferret_core.evaluation.ferret_bench import (
    REVIEWS,
    UNREADABLE,
    ask_judge,
    read_bench,
    read_scores,
    spent,
    to_judge,
    to_regions,
    with_shares,
)
from ferret_core.evaluation.predictions import read_predictions
from ferret_core.evaluation.runs import PREDICTIONS
from ferret_core.evaluation.scores import score
from ferret_core.geometry import Box, ImageSize, Point
from ferret_core.predictor import FerretPredictor
from tests.ferret_core.test_build_instructions import ChatServer

SIZE = ImageSize(64, 48)
CATEGORIES = {"refer_caption": "refer_desc", "refer_reason": "refer_reason", "ground_conv": "ground_conv"}


@pytest.fixture
def published(tmp_path):
    root = tmp_path / "bench"
    for part, category in CATEGORIES.items():
        (root / part).mkdir(parents=True)
        for name, text in (
            ("question", "What is in [0.250, 0.500, 0.500, 1.000]?"),
            ("context", "Objects:\nObject 0 : cat at [0.250, 0.500, 0.500, 1.000]."),
            ("answer", "A cat [0.250, 0.500, 0.500, 1.000]."),
        ):
            rows = [{"question_id": i, "image": f"{i}.png", "category": category, "text": f"{text} {i}"} for i in (1, 2)]
            (root / part / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rules = {category: {"role": "Assistant", "prompt": f"Rate, as of {category}."} for category in CATEGORIES.values()}
    (root / "rule.json").write_text(json.dumps(rules))
    for i in (1, 2):
        Image.new("RGB", SIZE).save(tmp_path / f"{i}.png")
    return root


def test_boxes_are_shares_of_the_picture():
    text, regions = to_regions("Is [0.250, 0.500, 0.500, 1.000] above [0.0,0.1,0.2,0.3]? See [1].", SIZE)
    assert text == "Is [region0] above [region1]? See [1]."
    assert regions[0] == Box(16, 24, 32, 48)
    assert to_regions("[0, 0.5, 1, 1] or [0.5, 0.25]?", SIZE) == (
        "[region0] or [region1]?",
        (Box(0, 24, 64, 48), Point(32, 12)),
    )
    with pytest.raises(ValueError, match="x2 must not be smaller"):
        to_regions("[0.3, 0.2, 0.1, 0.4]", SIZE)
    with pytest.raises(ValueError, match=r"has \[regionN\]"):
        to_regions("[region0] and [0.1, 0.2, 0.3, 0.4]", SIZE)
    assert with_shares("A cat [16, 24, 320, 1000], [a] [1, 2].") == "A cat [0.016, 0.024, 0.320, 1.000], [a] [1, 2]."


def test_the_judge_is_asked_about_both_answers(published, tmp_path):
    items = list(read_bench(published, tmp_path))
    assert len(items) == 6
    assert items[0].question == "What is in [region0]? 1"
    (asked,) = to_judge([Prediction(items[0], "A dog [500, 0, 1000, 1000].")])
    parts = [
        "Object 0 : cat",
        "What is in [0.250,",
        "[Assistant 1]\nA cat",
        "[Assistant 2]\nA dog [0.500, 0.000,",
        "Rate, as of refer_desc.",
    ]
    places = [asked.question.index(part) for part in parts]
    assert places == sorted(places)
    (tmp_path / "2.png").unlink()
    with pytest.raises(ValueError, match=r"question 2: .*2\.png is not there; --images"):
        list(read_bench(published, tmp_path))
    (published / "ground_conv" / "context.jsonl").unlink()
    Image.new("RGB", SIZE).save(tmp_path / "2.png")
    with pytest.raises(ValueError, match=r"context\.jsonl is not there"):
        list(read_bench(published, tmp_path))


@pytest.mark.parametrize("review", ["8 9\nFine.", "8,9", "8.0 9\n\n7 7"])
def test_scores_are_the_two_numbers_of_the_first_line(review):
    assert read_scores(review) == (8, 9)


@pytest.mark.parametrize("review", ["", "\n8 9", "8\n9", "8, 9", "8  9", "8 9 ", "8 9 10", "Both are good.", "nan 9", "inf 9"])
def test_reviews_without_two_numbers_there_are_unreadable(review):
    assert read_scores(review) == UNREADABLE


def test_scores_are_relative_to_the_reference():
    reviews = ["8 6\nFine.", "10, 4\nWell.", "9.0 7.5", "Both are good.", None]
    groups = ["ground_conv"] * 4 + ["refer_desc"]
    made = [
        Prediction(Item(id=str(i), group=group, image="", question="?"), review)
        for i, (group, review) in enumerate(zip(groups, reviews, strict=True))
    ]
    scores = score(REVIEWS, made)
    found = {(each.group, each.figure): each.value for each in scores.scores}
    assert found["ground_conv", "relative to the reference"] == pytest.approx((6 - 1 + 7.5 - 1) / (8 - 1 + 9 - 1))
    assert found["ground_conv", "relative to the reference, strict"] == pytest.approx((6 + 4 + 7.5) / (8 + 10 + 9))
    assert found["ground_conv", "mean score"] == pytest.approx((6 - 1 + 7.5 - 1) / 4)
    assert ("refer_desc", "relative to the reference") not in found  # nothing to be relative to
    assert {group.name: group.counts["unreadable reviews"] for group in scores.groups} == {"ground_conv": 2, "refer_desc": 1}


def test_each_part_counts_as_much_in_the_mean():
    parts = {"refer_desc": ["10 8"], "refer_reason": ["10 6", "10 8"], "ground_conv": ["5 1"] * 3}
    made = [
        Prediction(Item(id=f"{part}{i}", group=part), review)
        for part, reviews in parts.items()
        for i, review in enumerate(reviews)
    ]
    (mean,) = (each for each in score(REVIEWS, made).scores if each.group == "all")
    assert mean.value == pytest.approx((0.8 + 0.7 + 0.2) / 3)
    assert mean.low <= mean.value <= mean.high
    assert mean.paper == {"7B": 0.645, "13B": 0.663}


def test_what_the_judge_refuses_is_not_judged(tmp_path):
    server = ChatServer(lambda request: 400 if "2?" in request["messages"][-1]["content"] else "8 4")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        judge = ask_judge(LanguageModel(url=server.url, model="it", cache=tmp_path))
        assert judge([Item(id=str(i), question=f"{i}?") for i in range(4)], 9) == ["8 4", "8 4", None, "8 4"]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_command_line_judges_and_goes_on(published, tmp_path, monkeypatch, tiny_model, tiny_processor):
    predictor = FerretPredictor(tiny_model, tiny_processor)
    monkeypatch.setattr(FerretPredictor, "from_pretrained", classmethod(lambda cls, name: predictor))
    busy = [503]  # once

    server = ChatServer(lambda request: busy.pop() if busy else "8 4\nThe second is worse.")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        output, reviews = tmp_path / "out", tmp_path / "reviews"
        command = [
            "eval",
            "bench",
            str(published),
            "--images",
            str(tmp_path),
            "--reviews",
            str(reviews),
            "--output",
            str(output),
        ]
        command += ["--judge", "it", "--judge-url", server.url]
        dry = CliRunner().invoke(app, [*command, "--dry-run", "--price-in", "10000"])
        assert dry.exit_code == 0, dry.output
        assert "6 requests" in dry.output
        assert "$" in dry.output
        assert not server.requests
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        assert "| ground_conv | relative to the reference | 50.00% |" in result.output
        assert "| 57.50% | 59.70% |" in result.output
        assert f"- model: playground, judged by it of {server.url}\n- revision: {revision('playground')}\n" in result.output
        asked = len(server.requests)
        assert asked == 6 + 1
        assert {request["temperature"] for request in server.requests} == {0.0}
        assert spent(reviews)["requests"] == 6
        assert len(list(read_predictions(output / "then" / PREDICTIONS))) == 6
        (output / "then" / PREDICTIONS).unlink()
        again = CliRunner().invoke(app, command)
        assert again.exit_code == 0, again.output
        assert len(server.requests) == asked  # nothing is paid for twice
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
