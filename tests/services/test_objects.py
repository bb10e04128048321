"""Images and logs, in a directory and in a bucket that goes away and comes back."""

import json
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ferret_core.images import image_id
from services.errors import UnavailableError
from services.settings import StoreSettings
from services.stores import check_servers, open_stores
from tests.object_store import BUCKET
from tests.processes import wait_until


@pytest.fixture
def bucket(s3, tmp_path):
    """Opens the stores of a replica whose machine keeps its files in a directory."""
    opened = []

    def open_bucket(machine="a", **settings):
        settings = StoreSettings(directory=tmp_path / machine, s3_url=f"s3://{BUCKET}/platform", **settings)
        opened.append(open_stores(settings))
        return opened[-1]

    yield open_bucket
    for stores in opened:
        stores.close()


@pytest.fixture(params=["directory", "bucket"])
def stores(request, tmp_path):
    if request.param == "bucket":
        return request.getfixturevalue("bucket")()
    return open_stores(StoreSettings(directory=tmp_path))


def waiting(tmp_path, machine="a"):
    return [path for path in (tmp_path / machine / "spool").rglob("*") if path.is_file()]


def test_images_are_kept_by_their_content(stores):
    identity = stores.images.put(b"a" * 100)
    assert identity == image_id(b"a" * 100) == stores.images.put(b"a" * 100)
    assert stores.images.get(identity) == b"a" * 100
    assert stores.images.get(image_id(b"b")) is None
    for _ in range(2):
        stores.images.remove(identity)
        assert stores.images.get(identity) is None


def test_image_ids_are_not_paths(stores, tmp_path):
    (tmp_path / "secret").write_text("x")
    for name in ("../secret", "sha256:../secret", str(tmp_path / "secret"), "sha256:" + "/" * 64, "0" * 63 + "\n", ""):
        assert stores.images.get(name) is None
        stores.images.remove(name)
    assert (tmp_path / "secret").exists()


@pytest.mark.parametrize("name", ["feedback", "answers"])
def test_logs_are_lines_of_json(stores, name):
    log, others = getattr(stores, name), {"feedback": stores.answers, "answers": stores.feedback}[name]
    comment, first, second = "größer\n" * 500, "a" * 32, "b" * 32
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda i: log.append(first, {"turn": i, "comment": comment}), range(20)))
    log.append(second, {"turn": 0})
    lines = [json.loads(line) for line in log.lines(first)]
    assert sorted(line["turn"] for line in lines) == list(range(20))
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    for line in lines:
        assert (line["conversation"], line["comment"]) == (first, comment)
    assert f"date={datetime.now(UTC):%Y-%m-%d}/" in log.objects.names()

    assert others.lines(first) == []
    assert [log.remove(first), log.remove(first)] == [True, False]
    assert log.lines(first) == []
    assert [json.loads(line)["turn"] for line in log.lines(second)] == [0]


def test_replicas_of_all_machines_see_a_bucket(bucket, s3):
    first, second = bucket("a"), bucket("b")
    identity = first.images.put(b"a")
    assert second.images.get(identity) == b"a"
    assert (s3.bucket / "platform" / "images" / identity.removeprefix("sha256:")).read_bytes() == b"a"
    second.images.remove(identity)
    assert first.images.get(identity) is None


def test_images_and_logs_wait_for_a_bucket_that_is_away(bucket, s3, tmp_path):
    stores, neighbour, stranger = bucket("a"), bucket("a"), bucket("b")
    kept, forgotten = stores.images.put(b"kept"), stranger.images.put(b"of another machine")
    assert stores.images.get(kept) == b"kept"
    s3.stop()
    begun = time.monotonic()
    new = stores.images.put(b"new")
    for log in (stores.feedback, stores.answers):
        log.append("a" * 32, {"turn": 0})
    first = time.monotonic() - begun
    begun = time.monotonic()
    for _ in range(50):
        assert stores.images.put(b"new") == new
        assert stores.images.get(new) == b"new"
        assert stores.images.get(kept) == b"kept"  # a copy
        with pytest.raises(UnavailableError, match="try again"):
            stores.images.get(forgotten)
    assert first < 5
    assert time.monotonic() - begun < 2  # fifty times: nobody waits for a dead server but the first
    assert neighbour.images.get(new) == b"new"  # another replica of the machine
    with pytest.raises(UnavailableError, match="try again"):  # it must not seem to be done
        stores.images.remove(new)
    for log in (stores.feedback, stores.answers):
        with pytest.raises(UnavailableError, match="try again"):
            log.remove("a" * 32)
    assert len(waiting(tmp_path)) == 3

    s3.start()
    for replica in (stores, stranger):
        wait_until(lambda replica=replica: replica.breakers["s3"].up)
    assert stranger.images.get(new) == b"new"
    for log in (stranger.feedback, stranger.answers):
        assert [json.loads(line)["turn"] for line in log.lines("a" * 32)] == [0]
    assert stores.images.get(forgotten) == b"of another machine"
    assert waiting(tmp_path) == []


def test_the_log_tells_why_a_bucket_is_away_and_names_no_conversation(bucket, s3, caplog):
    stores = bucket()
    s3.stop()
    stores.feedback.append("a" * 32, {"turn": 0})  # who knows the id may read the conversation
    assert re.search(r"s3 is away \(\w+\)", caplog.text)
    assert "a" * 32 not in caplog.text
    s3.start()
    wait_until(lambda: stores.breakers["s3"].up)


def test_a_file_that_cannot_be_read_does_not_keep_the_others_from_the_bucket(bucket, s3, tmp_path, monkeypatch):
    stores, path_open = bucket(), Path.open
    s3.stop()
    bad, good = stores.images.put(b"bad"), stores.images.put(b"good")
    damaged = bad.removeprefix("sha256:")

    def fail(path, *args, **kwargs):
        if path.name == damaged:
            raise PermissionError(path)
        return path_open(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", fail)
    s3.start()
    wait_until(lambda: stores.breakers["s3"].up)
    assert [path.name for path in waiting(tmp_path)] == [f"{damaged}.bad"]
    assert (s3.bucket / "platform" / "images" / good.removeprefix("sha256:")).read_bytes() == b"good"


def test_what_waits_outlives_its_replica(bucket, s3, tmp_path):
    s3.stop()
    killed = bucket("a")
    identity = killed.images.put(b"acknowledged")
    killed.close()
    s3.start()
    assert bucket("a").images.get(identity) == b"acknowledged"  # as yet from the disk
    wait_until(lambda: not waiting(tmp_path))
    assert bucket("b").images.get(identity) == b"acknowledged"


def test_what_a_deleted_image_was_does_not_come_back(bucket, s3, tmp_path):
    stores = bucket("a")
    identity = stores.images.put(b"private")
    stores.images.remove(identity)
    s3.stop()
    with pytest.raises(UnavailableError):
        stores.images.get(identity)
    s3.start()
    wait_until(lambda: stores.breakers["s3"].up)
    assert stores.images.get(identity) is None


def test_a_bucket_that_is_not_there_is_named(s3, tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match=r"stores.s3_url: s3://nowhere/x: no such bucket; make it first"):
        check_servers(StoreSettings(directory=tmp_path, s3_url="s3://nowhere/x"))
    check_servers(StoreSettings(directory=tmp_path, s3_url=f"s3://{BUCKET}"))
    s3.stop()
    with pytest.raises(RuntimeError, match=r"stores.s3_url: s3://"):
        check_servers(StoreSettings(directory=tmp_path, s3_url=f"s3://{BUCKET}"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(ValueError, match="AWS_ACCESS_KEY_ID"):
        open_stores(StoreSettings(directory=tmp_path, s3_url=f"s3://{BUCKET}"))


def test_an_s3_that_hangs_costs_one_call_its_timeout(bucket, s3):
    stores = bucket()
    stores.images.put(b"a")
    s3._process.send_signal(signal.SIGSTOP)
    try:
        begun = time.monotonic()
        identity = stores.images.put(b"b")
        first = time.monotonic() - begun
        begun = time.monotonic()
        for _ in range(50):
            assert stores.images.put(b"b") == identity
        assert first < 8
        assert time.monotonic() - begun < 1
    finally:
        s3._process.send_signal(signal.SIGCONT)
    wait_until(lambda: stores.breakers["s3"].up)
    assert bucket("b").images.get(identity) == b"b"
