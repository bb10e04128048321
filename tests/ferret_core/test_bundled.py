"""The bundled checkpoint: small, and as good as its model card says (which counts a thousand scenes; here, a few)."""

import re

import pytest

from ferret_core.checkpoint.bundled import BUNDLED
from ferret_core.evaluation.playground import TARGETS, evaluate_playground
from ferret_core.predictor import FerretPredictor

DIRECTORY = BUNDLED["playground"]
CLAIMED = {
    asked: float(percent) / 100
    for asked, percent in re.findall(r"^\| 3d \| ([^|]+) \| ([\d.]+)% \|", (DIRECTORY / "README.md").read_text(), re.M)
}


def test_is_small():
    predictor = FerretPredictor.from_pretrained("playground", device="cpu")
    assert predictor.model.num_parameters() <= 30e6
    assert sum(file.stat().st_size for file in DIRECTORY.iterdir()) <= 40 * 2**20


def test_its_model_card_can_be_read():
    assert {
        "named (box)",
        "named (point)",
        "named (scribble)",
        "located (by name)",
        "located (by relation)",
        "yes or no",
    } <= set(CLAIMED)


@pytest.mark.parametrize("asked", [name for name in TARGETS if name in CLAIMED])
def test_is_as_good_as_its_model_card_says(asked, scores):
    found = scores[asked]
    assert found.low - 0.05 <= CLAIMED[asked] <= found.high + 0.05, f"{found.value:.1%} of {found.of}"


@pytest.fixture(scope="module")
def scores():
    found = evaluate_playground(FerretPredictor.from_pretrained("playground", device="cpu"), scenes=20)
    return {each.figure: each for each in found.scores}
