"""An evaluation of a platform goes on only with the checkpoint that it began with."""

from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from ferret_core.cli import app, connection


class Platform:
    """A client of a platform whose model breaks down after some answers."""

    server = "ferret:9000"
    revision, answers = "a", 3

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def revisions(self):
        return {"large": self.revision, "small": "c"}

    def set_image(self, image):
        pass

    def ask(self, question, regions, **sampling):
        Platform.answers -= 1
        if Platform.answers < 0:
            raise RuntimeError("broken down")
        return SimpleNamespace(text="It is a dog.")


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "connect", lambda server, model, **described: Platform())
    monkeypatch.setattr(Platform, "answers", 3)

    def evaluate(*arguments):
        command = ["eval", "robustness", "--scenes", "1", "--limit", "4", "--batch-size", "1", "--output", str(tmp_path)]
        return CliRunner().invoke(app, [*command, "--server", Platform.server, *arguments])

    return evaluate


def test_a_checkpoint_that_changed_is_refused(evaluate, monkeypatch, tmp_path):
    assert "broken down" in str(evaluate().exception)
    kept = (tmp_path / "predictions.jsonl").read_text()
    assert kept.count("\n") == 3
    monkeypatch.setattr(Platform, "answers", 9)
    monkeypatch.setattr(Platform, "revision", "b")
    assert "holds an evaluation with revision 'a', not 'b'; use another --output" in str(evaluate().exception)
    assert (tmp_path / "predictions.jsonl").read_text() == kept
    monkeypatch.setattr(Platform, "revision", "a")
    result = evaluate()
    assert result.exit_code == 0, result.output
    assert "- model: large\n- revision: a\n- answered: 4 of 4" in result.output


def test_a_platform_that_does_not_tell(evaluate, monkeypatch):
    monkeypatch.setattr(Platform, "answers", 9)
    monkeypatch.setattr(Platform, "revision", "")
    assert "- revision: not told: the platform is older than this command" in evaluate().output
    assert "--model: ferret:9000 serves no 'huge'; it serves large, small" in str(evaluate("--model", "huge").exception)


def test_one_is_asked(evaluate):
    assert "--ray and --answers: one of them" in str(evaluate("--ray", "auto").exception)
    assert "--workers, --worker-cpus and --worker-gpus: only with --ray" in str(evaluate("--workers", "2").exception)
