"""Files that the replicas of one machine share."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from services.errors import UnavailableError
from services.stores.directory import Directory, Spool


def age(directory, seconds):
    for path in directory.path.iterdir():
        os.utime(path, (path.stat().st_mtime - seconds,) * 2)


def test_the_least_recently_used_go(tmp_path):
    directory = Directory(tmp_path, max_bytes=250)
    for name in ("a", "a", "b"):
        directory.add(name, bytes(100))
    assert directory.has("a")
    directory.add("c", bytes(100))
    assert directory.names() == ["a", "c"]
    directory.replace("c", bytes(200))
    assert directory.names() == ["c"]


def test_the_unused_go(tmp_path):
    directory = Directory(tmp_path, max_seconds=100)
    directory.add("a", b"x")
    for _ in range(2):
        age(directory, 90)
        assert directory.get("a") == b"x"  # used, and so as good as new
    age(directory, 110)
    assert directory.get("a") is None
    assert not directory.has("a")
    with directory.locked("a") as data:
        assert data is None
    Directory(tmp_path, max_seconds=100).add("b", b"y")  # its first
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_all_files_are_looked_at_once_an_hour(tmp_path, monkeypatch):
    """Not with each of them: a log of ratings grows for ever."""
    directory, looks, now = Directory(tmp_path, max_seconds=100), [], 0.0
    files = directory._files
    monkeypatch.setattr(directory, "_files", lambda: looks.append(now) or files())
    monkeypatch.setattr("time.monotonic", lambda: now)
    for i in range(7200):
        now = float(i)
        if i % 60 == 0:
            directory.add(str(i), b"x")
    assert looks == [0, 3660]


def test_a_directory_with_a_limit_is_looked_at_as_it_grows(tmp_path, monkeypatch):
    directory, looks = Directory(tmp_path, max_bytes=10_000), []
    files = directory._files
    monkeypatch.setattr(directory, "_files", lambda: looks.append(1) or files())
    for i in range(100):
        directory.add(str(i), bytes(10))  # a thousandth
    assert len(looks) == 10


def test_what_a_killed_process_left_behind_goes(tmp_path):
    directory = Directory(tmp_path)
    (tmp_path / ".unfinished").write_bytes(b"x")
    (tmp_path / ".being-written").write_bytes(b"x")
    os.utime(tmp_path / ".unfinished", (0, 0))
    directory.add("a", b"")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".being-written", "a"]


def test_names_are_listed_a_folder_at_a_time(tmp_path):
    directory = Directory(tmp_path)
    for name in ("a/x-1", "a/x-2", "a/y", "b/x-1", "c"):
        directory.add(name, b"")
    assert directory.names() == ["a/", "b/", "c"]
    assert directory.names("a/x-") == ["a/x-1", "a/x-2"]
    assert directory.names("d/") == []


def test_many_at_once(tmp_path):
    """Files come and go under each other's hands."""

    def add_and_get(turn):
        directory, name = Directory(tmp_path, max_bytes=500), str(turn % 20)
        directory.add(name, name.encode() * 50)
        assert directory.get(name) in (name.encode() * 50, None)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(add_and_get, range(600)))


def test_one_at_a_time_changes_a_file(tmp_path):
    Directory(tmp_path).add("a", b"0")

    def count(_):
        directory = Directory(tmp_path)
        with directory.locked("a") as data:
            directory.replace("a", b"%d" % (int(data) + 1))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(count, range(200)))
    assert Directory(tmp_path).get("a") == b"200"


def test_the_first_to_add_a_file_wins(tmp_path):
    """Whoever adds it later must not undo what happened to it since."""
    directory = Directory(tmp_path)
    directory.add("a", b"1")
    directory.has = lambda name: False  # as another sees it that is a little behind
    directory.add("a", b"2")
    assert Directory(tmp_path).get("a") == b"1"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_spool_refuses_what_does_not_fit(tmp_path):
    spool = Spool(tmp_path, max_bytes=250)
    spool.add("a/x", bytes(100))
    spool.add("b", bytes(100))
    with pytest.raises(UnavailableError, match="try again later"):
        spool.add("c", bytes(100))
    assert sorted(spool.all_names()) == ["a/x", "b"]


def test_nobody_else_may_look(tmp_path):
    Directory(tmp_path / "home" / "images").add("a/b", b"x")
    for path in (tmp_path / "home").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700
