"""What is kept between questions."""

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from ferret.v1 import ferret_pb2 as pb

from services.errors import NotFoundError
from services.stores import ConversationStore, FeedbackLog, ImageStore


def test_evicts_the_least_recently_used(tmp_path):
    store = ImageStore(tmp_path / "images", max_bytes=250)
    first = store.put(b"a" * 100)
    assert store.put(b"a" * 100) == first
    second = store.put(b"b" * 100)
    assert store.get(first) == b"a" * 100
    store.put(b"c" * 100)
    assert store.get(second) is None
    assert store.get(first) == b"a" * 100


def test_ids_are_not_paths(tmp_path):
    (tmp_path / "secret").write_text("x")
    store = ImageStore(tmp_path / "images", max_bytes=250)
    for name in ("../secret", "sha256:../secret", "/etc/passwd", "sha256:" + "/" * 64, ""):
        assert store.get(name) is None


def test_many_at_once(tmp_path):
    """Replicas share the directory: files come and go under each other's hands."""
    images = [bytes([i]) * 100 for i in range(20)]

    def put_and_get(turn):
        store = ImageStore(tmp_path / "images", max_bytes=500)
        data = images[turn % len(images)]
        assert store.get(store.put(data)) in (data, None)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(put_and_get, range(600)))


def conversation(*questions):
    return pb.Conversation(turns=[pb.Turn(question=question) for question in questions])


def questions(store, conversation_id):
    return [turn.question for turn in store.get(conversation_id).turns]


def age(store, days):
    for path in store.directory.iterdir():
        os.utime(path, (path.stat().st_mtime - days * 86400,) * 2)


def test_a_conversation_is_kept_for_whoever_knows_its_id(tmp_path):
    store = ConversationStore(tmp_path / "conversations", max_age_days=30)
    first, second = conversation("a"), conversation("b")
    store.create(first)
    store.create(second)
    assert re.fullmatch("[0-9a-f]{32}", first.id)
    with store.update(first.id) as changed:
        changed.turns.add(question="c")
    again = ConversationStore(store.directory, max_age_days=30)  # as after a restart
    assert again.get(first.id) == changed
    assert questions(again, first.id) == ["a", "c"]
    assert questions(again, second.id) == ["b"]


def test_an_update_that_fails_changes_nothing(tmp_path):
    store = ConversationStore(tmp_path, max_age_days=30)
    store.create(kept := conversation("a"))

    def fail():
        with store.update(kept.id) as changed:
            changed.turns.add(question="b")
            raise ValueError("question: must not be empty")

    with pytest.raises(ValueError, match="question"):
        fail()
    assert questions(store, kept.id) == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == [kept.id]


def test_unused_conversations_go(tmp_path):
    store = ConversationStore(tmp_path, max_age_days=30)
    store.create(old := conversation("a"))
    for _ in range(2):
        age(store, 29)
        assert questions(store, old.id) == ["a"]  # used, and so as good as new
    age(store, 31)
    for use in (store.get, lambda conversation_id: store.update(conversation_id).__enter__()):
        with pytest.raises(NotFoundError, match=f"conversation_id: no conversation '{old.id}'; create a new one"):
            use(old.id)
    store.create(new := conversation("b"))
    assert [path.name for path in tmp_path.iterdir()] == [new.id]


def test_conversation_ids_are_not_paths(tmp_path):
    (tmp_path / "secret").write_bytes(conversation("x").SerializeToString())
    store = ConversationStore(tmp_path / "conversations", max_age_days=30)
    for name in ("../secret", str(tmp_path / "secret"), "", ".", "0" * 32, "0" * 31 + "\n", "A" * 32):
        with pytest.raises(NotFoundError):
            store.get(name)


def test_writers_do_not_lose_each_others_changes(tmp_path):
    ConversationStore(tmp_path, max_age_days=30).create(kept := conversation())

    def write(turn):
        with ConversationStore(tmp_path, max_age_days=30).update(kept.id) as changed:
            changed.turns.add(question=str(turn))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(200)))
    assert sorted(map(int, questions(ConversationStore(tmp_path, max_age_days=30), kept.id))) == list(range(200))


def test_feedback_is_a_line_of_json_each(tmp_path):
    comment = "größer\n" * 5000
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda i: FeedbackLog(tmp_path / "feedback").append({"turn": i, "comment": comment}), range(100)))
    entries = []
    for path in (tmp_path / "feedback").iterdir():  # two, around midnight
        for entry in map(json.loads, path.read_text().splitlines()):
            assert entry["time"].startswith(path.stem)
            assert entry["comment"] == comment
            entries.append(entry["turn"])
    assert sorted(entries) == list(range(100))


def test_nobody_else_may_look(tmp_path):
    ImageStore(tmp_path / "images", max_bytes=250).put(b"a")
    ConversationStore(tmp_path / "conversations", max_age_days=30).create(conversation("a"))
    FeedbackLog(tmp_path / "feedback").append({})
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)
