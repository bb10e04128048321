"""The bundled checkpoint: small, and as good as its model card says (which counts a thousand scenes; here, a few)."""

import re

import pytest

from ferret_core.checkpoint.bundled import BUNDLED
from ferret_core.evaluation.playground import evaluate_playground, report
from ferret_core.predictor import FerretPredictor

DIRECTORY = BUNDLED["playground"]


def test_is_small():
    predictor = FerretPredictor.from_pretrained("playground", device="cpu")
    assert predictor.model.num_parameters() <= 30e6
    assert sum(file.stat().st_size for file in DIRECTORY.iterdir()) <= 40 * 2**20


@pytest.mark.parametrize("asked", ["named (box)", "named (point)", "named (scribble)", "yes or no"])
def test_is_as_good_as_its_model_card_says(asked, scores):
    (claimed,) = re.findall(rf"^\| {re.escape(asked)} \|.*?([\d.]+)% \|", (DIRECTORY / "README.md").read_text(), re.M)
    low, high = scores[asked].interval
    assert low - 0.05 <= float(claimed) / 100 <= high + 0.05, f"{scores[asked].right} of {scores[asked].total}"


def test_report_names_every_score(scores):
    assert all(f"| {name} |" in report(scores, model="playground") for name in scores)


@pytest.fixture(scope="module")
def scores():
    return evaluate_playground(FerretPredictor.from_pretrained("playground", device="cpu"), scenes=20, progress=False)
