"""The times of an answer's tokens; the clock and what is observed are the test's."""

import pytest

from services import metrics


class Observed(list):
    def observe(self, value, tags):
        assert tags == {"model": "playground"}
        self.append(value)


@pytest.fixture
def observed(monkeypatch):
    names = ("FIRST_TOKEN_SECONDS", "BETWEEN_TOKENS_SECONDS", "ANSWER_TOKENS_PER_SECOND")
    found = {name: Observed() for name in names}
    for name, values in found.items():
        monkeypatch.setattr(metrics, name, values)
    return found


def run(times, monkeypatch):
    """Asked at the first of the times, a token at each of the others."""
    monkeypatch.setattr(metrics.time, "monotonic", iter(times).__next__)
    timer = metrics.TokenTimer("playground")
    for _ in times[1:]:
        timer.tick()
    timer.end()


def test_an_answer(observed, monkeypatch):
    run([10, 13, 13.5, 13.75], monkeypatch)
    assert observed == {
        "FIRST_TOKEN_SECONDS": [3],
        "BETWEEN_TOKENS_SECONDS": [0.5, 0.25],
        "ANSWER_TOKENS_PER_SECOND": [2 / 0.75],
    }


@pytest.mark.parametrize("times", [[10], [10, 11]])
def test_too_short_an_answer_has_no_rate(observed, monkeypatch, times):
    run(times, monkeypatch)
    assert observed["FIRST_TOKEN_SECONDS"] == [1] * (len(times) - 1)
    assert not observed["ANSWER_TOKENS_PER_SECOND"]
