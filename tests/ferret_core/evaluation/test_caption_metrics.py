"""COCO's metrics are its tools' own, all captions together; what is not installed is named, and has no figure."""

import shutil

import pytest

from ferret_core.evaluation import caption_metrics, captioning
from ferret_core.evaluation.benchmark import Item, Prediction
from ferret_core.evaluation.results import markdown
from ferret_core.evaluation.scores import score
from ferret_core.geometry import ImageSize

CAPTIONS = {
    "a": (["A dog runs on the grass.", "Two brown dogs are running"], "A dog [1, 2, 3, 4] is running on grass."),
    "b": (["A man, standing, reads.", "A man is reading a book"], "a woman\u2028sleeps || on\ra bed"),
    "c": (["People walk along a street at night."], None),
    "d": (["Three children play football."], "Three children play football."),
}


def predictions():
    return [
        Prediction(
            Item(
                id=key, group="test", image="", size=ImageSize(9, 9), question="?", expected={"captions": right, "objects": []}
            ),
            given,
        )
        for key, (right, given) in CAPTIONS.items()
    ]


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(caption_metrics, "find_spec", lambda name: None)
    found = score(captioning.BENCHMARK, predictions())
    assert {each.figure for each in found.scores} == {"BLEU@4"}
    report = markdown(captioning.BENCHMARK, found, {})
    assert report.endswith(
        "METEOR, CIDEr and SPICE: not computed; pip install 'ferret-platform[evaluate]', which brings pycocoevalcap\n"
    )


def test_without_java_there_is_none(monkeypatch, tmp_path):
    (tmp_path / "pycocoevalcap").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PATH", "")
    assert caption_metrics.caption_metrics(predictions()).notes == (
        "METEOR, CIDEr and SPICE: not computed; install Java, as with apt install default-jre-headless",
    )


@pytest.mark.skipif(not shutil.which("java"), reason="needs Java")
def test_figures_are_those_of_the_tools():
    pytest.importorskip("pycocoevalcap")
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor

    found = score(captioning.BENCHMARK, predictions())
    by_name = {each.figure: each for each in found.scores}
    given = {
        "a": ["a dog is running on grass"],
        "b": ["a woman sleeps on a bed"],
        "c": [""],
        "d": ["three children play football"],
    }
    right = {
        "a": ["a dog runs on the grass", "two brown dogs are running"],
        "b": ["a man standing reads", "a man is reading a book"],
        "c": ["people walk along a street at night"],
        "d": ["three children play football"],
    }
    meteor, cider = Meteor().compute_score(right, given)[0], Cider().compute_score(right, given)[0]
    assert by_name["METEOR"].value == pytest.approx(meteor, abs=1e-9)
    assert by_name["CIDEr x 100"].value == pytest.approx(100 * cider)
    for name in ("METEOR", "CIDEr x 100"):
        assert by_name[name].low < by_name[name].value < by_name[name].high
    assert found.notes[0].startswith("SPICE: not computed; python -m pycocoevalcap") or "SPICE" in by_name
