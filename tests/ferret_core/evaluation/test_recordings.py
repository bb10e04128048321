"""Scores equal those of the original's scripts on the same answers (recordings in `golden/eval`)."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ferret_core.cli import app
from ferret_core.evaluation import pope, refexp
from ferret_core.evaluation.boxes_in_order import MalformedAnswerError, read_boxes
from ferret_core.evaluation.original_answers import match_by, read_rows
from ferret_core.evaluation.scores import score
from ferret_core.geometry import ImageSize

DOCUMENTATION = Path(__file__).parents[3] / "docs/evaluation.md"


@pytest.fixture(scope="module")
def recorded(golden):
    return golden / "eval"


@pytest.fixture(scope="module")
def results(recorded):
    return json.loads((recorded / "results.json").read_text())


@pytest.fixture(scope="module")
def located(recorded):
    items = list(refexp.read_refexp(recorded / "refexp" / "finetune_refcocog_test.json", split="test"))
    return match_by("image_id", answer="text")(items, read_rows(recorded / "refexp" / "pred"))


def test_boxes_are_read_as_the_original_reads_them(recorded, located):
    by_id = {prediction.item.id: prediction for prediction in located}
    rows = json.loads((recorded / "refexp" / "decode_rows.json").read_text())
    assert len(rows) == 39
    for row in rows:
        prediction = by_id.get(str(row.get("image_id")))
        text, size = (prediction.answer, prediction.item.size) if prediction else (row["text"], ImageSize(1000, 1000))
        if "error" in row:
            with pytest.raises(MalformedAnswerError):
                read_boxes(text, size)
        else:
            found = read_boxes(text, size)
            assert [list(named.box.coordinates(size)) for named in found] == row["boxes"]
            assert [named.phrase for named in found] == row["entities"]


def test_every_referring_expression_is_graded_as_by_the_original(recorded, located):
    rows = {str(row["image_id"]): row for row in json.loads((recorded / "refexp" / "per_row.json").read_text())}
    assert len(rows) == len(located) == 30
    for prediction in located:
        row, tally = rows[prediction.item.id], refexp.grade(prediction)
        for ours, theirs in (("IoU", "iou_first"), ("mean IoU", "iou_mean"), ("best IoU", "iou_max")):
            assert tally.get(ours, 0.0) == pytest.approx(row[theirs], abs=1e-6)
        for ours, theirs in (("first", "ok_first"), ("mean", "ok_mean"), ("best", "ok_max")):
            assert bool(tally.get(ours)) == row[theirs]


def test_referring_expressions_score_as_by_the_original(results, located):
    found = {(each.group, each.figure): each.value for each in score(refexp.BENCHMARK, located).scores}
    for dataset, (first, mean, best) in results["refexp_unsorted_[first,mean,upper]"].items():
        group = f"{dataset} test"
        assert found[group, "Acc@0.5"] == pytest.approx(first)
        assert found[group, "Acc@0.5, mean box"] == pytest.approx(mean)
        assert found[group, "Acc@0.5, best box"] == pytest.approx(best)
        assert found[group, "Acc@0.5, strict"] <= found[group, "Acc@0.5"]
    malformed = {group.name: group.counts["malformed"] for group in score(refexp.BENCHMARK, located).groups}
    assert sum(malformed.values()) == 5  # no digits, a bracket too many, a decimal point: each stopped the original's reader


def test_pope_scores_as_by_the_original(recorded, results):
    items = list(pope.read_pope(recorded / "pope" / "coco_pope_random.json"))
    predictions = match_by("question_id", answer="answer")(items, read_rows(recorded / "pope" / "pred"))
    scores = score(pope.BENCHMARK, predictions)
    found = {each.figure: each.value for each in scores.scores}
    names = {"accuracy": "Accuracy", "precision": "Precision", "recall": "Recall", "F1": "F1 score", "yes ratio": "Yes ratio"}
    for ours, theirs in names.items():
        assert found[ours] == pytest.approx(results["pope"][theirs])
    counts = scores.groups[0].counts
    assert [counts[name] for name in ("true yes", "false yes", "true no", "false no")] == [6, 11, 6, 3]


def test_where_the_original_stops_answers_are_wrong_and_counted(recorded, located):
    item = located[0].item
    tally = refexp.grade(type(located[0])(item, "It is at [12, 40]."))
    assert tally["malformed"] == 1
    assert not tally.get("first")
    unanswered = score(refexp.BENCHMARK, [*located[1:], type(located[0])(item, None)])
    assert sum(group.missing for group in unanswered.groups) == 1
    items = list(pope.read_pope(recorded / "pope" / "coco_pope_random.json"))
    nobody_says_yes = score(pope.BENCHMARK, match_by("question_id", answer="answer")(items, [{"answer": "no"}] * len(items)))
    assert "precision" not in {each.figure for each in nobody_says_yes.scores}
    assert {each.figure: each.value for each in nobody_says_yes.scores}["recall"] == 0


def test_recorded_answers_are_scored_and_kept_like_others(recorded, results, tmp_path):
    questions, answers = recorded / "pope" / "coco_pope_random.json", recorded / "pope" / "pred"
    command = ["eval", "pope", str(questions), "--answers", str(answers), "--output", str(tmp_path / "out")]
    scored = CliRunner().invoke(app, command)
    assert scored.exit_code == 0, scored.output
    assert f"| random | accuracy | {results['pope']['Accuracy']:.2%} |" in scored.output
    again = CliRunner().invoke(app, ["eval", "score", str(tmp_path / "out")])
    assert again.output in scored.output
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    rows = (answers / "0_of_1.jsonl").read_text().splitlines(keepends=True)
    (fewer / "0_of_1.jsonl").write_text("".join(rows[1:]))
    command[4] = str(fewer)
    assert "holds an evaluation with model" in str(CliRunner().invoke(app, command).exception)
    command[-1] = str(tmp_path / "other")
    assert "25 answers to 26 questions" in str(CliRunner().invoke(app, command).exception)


@pytest.mark.parametrize(("row", "benchmark"), list(enumerate(["refexp", "lvis", "bench-reviews"])))
def test_predictions_from_elsewhere_are_scored(row, benchmark, tmp_path):
    """As the documentation shows them."""
    shown = [line for line in DOCUMENTATION.read_text().splitlines() if line.startswith('{"id"')]
    (tmp_path / "predictions.jsonl").write_text(shown[row] + "\n")
    scored = CliRunner().invoke(app, ["eval", "score", str(tmp_path), "--benchmark", benchmark])
    assert scored.exit_code == 0, scored.output
    group = json.loads(shown[row])["group"]
    right = {"refexp": "Acc@0.5 | 100.00%", "lvis": "accuracy | 100.00%", "bench-reviews": "relative to the reference | 75.00%"}
    assert f"| {group} | {right[benchmark]} |" in scored.output
    assert "tells of no evaluation" in str(CliRunner().invoke(app, ["eval", "score", str(tmp_path)]).exception)
