"""The load generator: what it asks when, and what it makes of the answers. The platform is a gRPC server with a script."""

import asyncio
import itertools
import json
import time
from concurrent import futures
from contextlib import contextmanager

import grpc
import pytest
from ferret.v1 import ferret_pb2 as pb
from ferret.v1 import ferret_pb2_grpc
from PIL import Image

from services.client import AsyncFerretClient
from services.load_generator import Load, Outcome, Question, playground_questions, run
from services.load_report import draw, goodput, summarize


class Script(ferret_pb2_grpc.FerretServiceServicer):
    """Three words, a hundredth of a second each, and a span; every `refused`th question is refused."""

    def __init__(self, refused):
        self.refused, self.asked, self.now, self.most = refused, itertools.count(1), 0, 0
        self.texts = []

    def UploadImage(self, request, context):  # noqa: N802
        return pb.UploadImageResponse(image=pb.ImageInfo(id="sha256:1", width=9, height=9))

    def Chat(self, request, context):  # noqa: N802
        if self.refused and next(self.asked) % self.refused == 0:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")
        self.texts.append(request.question)
        self.now += 1
        self.most = max(self.most, self.now)
        for word in ("It", " is", " it"):
            time.sleep(0.01)
            yield pb.ChatResponse(text_delta=pb.TextDelta(text=word))
        self.now -= 1
        yield pb.ChatResponse(span=pb.Span(phrase="it"))
        yield pb.ChatResponse(finish=pb.Finish(reason=1, usage=pb.Usage(completion_tokens=4)))


@contextmanager
def platform(refused=0):
    server = grpc.server(futures.ThreadPoolExecutor(32))
    script = Script(refused)
    ferret_pb2_grpc.add_FerretServiceServicer_to_server(script, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", script
    finally:
        server.stop(None).wait()


def outcomes_of(load, server):
    questions = [Question(Image.new("RGB", (9, 9)), "What?"), Question(Image.new("RGB", (8, 8)), "Why?")]
    return asyncio.run(run(load, questions, lambda: AsyncFerretClient(server)))


def test_users_ask_one_question_at_a_time():
    load = Load(users=3, seconds=0.5, warmup=0)
    with platform() as (server, script):
        outcomes = outcomes_of(load, server)
    summary = summarize(load, outcomes)
    assert script.most == 3
    assert {len(outcome.events) for outcome in outcomes} == {3}  # a word each
    assert summary["asked"] == summary["answered"] >= 3
    assert summary["tokens_per_second"] == pytest.approx(4 * summary["answers_per_second"], rel=0.01)
    assert summary["milliseconds"]["whole answer"]["p50"] >= summary["milliseconds"]["first words"]["p50"] >= 10


def test_questions_come_at_a_rate_whatever_becomes_of_them():
    """Twice with one seed: at the same times."""
    load = Load(rate=40, seconds=1, warmup=0)
    with platform(refused=3) as (server, _):
        first, second = (outcomes_of(load, server) for _ in range(2))
    assert [outcome.due for outcome in first] == [outcome.due for outcome in second]
    assert 20 < len(first) < 60
    summary = summarize(load, first)
    assert summary["errors"] == {"RESOURCE_EXHAUSTED": len(first) // 3}
    assert summary["answered"] == len(first) - len(first) // 3


def test_questions_are_asked_in_their_order():
    with platform() as (server, script):
        load = Load(users=1, seconds=0.3, warmup=0, in_order=True)
        outcomes = outcomes_of(load, server)
    assert script.texts == [("What?", "Why?")[i % 2] for i in range(len(outcomes))]


def test_goodput():
    """Too late, too slow, refused and silent are not good; neither is what was asked during the warm-up."""
    good = [Outcome(due=i, end=i + 2, events=[i + 1, i + 1.0625, i + 1.125]) for i in range(4, 8)]
    late = Outcome(due=6, end=9, events=[7.25, 7.3125])
    slow = Outcome(due=6, end=9, events=[6.5, 6.75])
    others = [late, slow, Outcome(due=6, end=6, error="RESOURCE_EXHAUSTED"), Outcome(due=6, end=7)]
    load = Load(rate=1, seconds=6, warmup=5)
    assert goodput(load, good + others, first=1, between=0.1) == 3 / 6
    assert goodput(load, good + others, first=1.25, between=0.25) == 5 / 6


def test_what_is_counted():
    """Only what was due after the warm-up, from when it was due."""
    outcomes = [Outcome(due=i, end=i + 1 + i / 10, tokens=5, events=[i + 0.1, i + 0.3]) for i in range(10)]
    outcomes.append(Outcome(due=9, end=9.5, error="UNAVAILABLE"))
    summary = summarize(Load(rate=1, seconds=10, warmup=5), outcomes)
    assert (summary["asked"], summary["answered"], summary["errors"]) == (6, 5, {"UNAVAILABLE": 1})
    waits = summary["milliseconds"]
    assert waits["first words"] == {"mean": 100, "p50": 100, "p90": 100, "p95": 100, "p99": 100}
    assert waits["whole answer"] == {"mean": 1700, "p50": 1700, "p90": 1900, "p95": 1900, "p99": 1900}
    assert waits["between words"]["p50"] == 200
    assert summary["seconds"] == 10
    assert summary["tokens_per_second"] == 2.5


@pytest.mark.parametrize("outcomes", [[], [Outcome(due=0, end=1, error="UNAVAILABLE")]])
def test_nothing_was_answered(outcomes, tmp_path):
    summary = summarize(Load(warmup=0), outcomes)
    assert summary["answered"] == 0
    assert json.dumps(summary)
    draw(Load(warmup=0), outcomes, tmp_path / "load.png")
    assert (tmp_path / "load.png").stat().st_size > 1000


@pytest.mark.parametrize("setting", ["users", "rate", "seconds", "warmup", "max_new_tokens"])
def test_bad_settings(setting):
    with pytest.raises(ValueError, match=f"^{setting}: must be at least"):
        Load(**{setting: -1})


def test_questions_of_the_playground_have_their_regions():
    for question in playground_questions(12):
        assert question.text.count("[region") == len(question.regions)
