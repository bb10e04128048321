"""Conversations, in a directory and in a Redis that goes away and comes back."""

import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from ferret.v1 import ferret_pb2 as pb

from ferret_core.geometry import Point
from services.errors import NotFoundError, UnavailableError
from services.settings import StoreSettings
from services.stores import check_servers, open_stores
from services.stores.redis_server import connect
from services.stores.shared_conversations import merged
from services.wire import region_to_proto
from tests.processes import wait_until


@pytest.fixture
def shared(redis, tmp_path):
    """Opens the stores of a replica whose machine keeps its files in a directory."""
    opened = []

    def open_redis(machine="a", **settings):
        settings = StoreSettings(directory=tmp_path / machine, redis_url=redis.url, **settings)
        opened.append(open_stores(settings))
        return opened[-1]

    yield open_redis
    for stores in opened:
        stores.close()


@pytest.fixture(params=["directory", "redis"])
def replica(request, tmp_path):
    """Opens the conversations of another replica."""
    if request.param == "redis":
        shared = request.getfixturevalue("shared")
        return lambda **settings: shared(**settings).conversations
    return lambda **settings: open_stores(StoreSettings(directory=tmp_path, **settings)).conversations


def conversation(*questions, image="sha256:x"):
    turns = [pb.Turn(id=question, question=question) for question in questions]
    return pb.Conversation(image=pb.ImageInfo(id=image), turns=turns)


def created(store, *questions, **fields):
    store.create(new := conversation(*questions, **fields))
    return new.id


def questions(store, identity):
    return [turn.question for turn in store.get(identity).turns]


def ask(store, identity, question):
    return store.update(identity, lambda conversation: conversation.turns.add(id=question, question=question).id)


def test_a_conversation_is_kept_for_whoever_knows_its_id(replica):
    store = replica()
    first, second = created(store, "a"), created(store, "b")
    assert re.fullmatch("[0-9a-f]{32}", first)
    assert ask(store, first, "c") == "c"
    other = replica()
    assert questions(other, first) == ["a", "c"]
    assert questions(other, second) == ["b"]
    ask(other, first, "d")
    assert questions(store, first) == ["a", "c", "d"]


def test_an_update_that_fails_changes_nothing(replica):
    store = replica()
    identity = created(store, "a")

    def fail(conversation):
        conversation.turns.add(question="b")
        raise ValueError("question: must not be empty")

    with pytest.raises(ValueError, match="question"):
        store.update(identity, fail)
    assert questions(store, identity) == ["a"]


def test_writers_do_not_lose_each_others_changes(replica):
    stores = [replica() for _ in range(4)]
    identity = created(stores[0])
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda i: ask(stores[i % 4], identity, str(i)), range(100)))
    assert sorted(map(int, questions(stores[0], identity))) == list(range(100))


def test_unused_conversations_go(replica):
    store = replica(conversation_days=2 / 86400)
    old, used = created(store, "a"), created(store, "b")
    for _ in range(4):
        time.sleep(0.7)
        assert questions(store, used) == ["b"]
    for use in (store.get, lambda identity: ask(store, identity, "c")):
        with pytest.raises(NotFoundError, match=f"conversation_id: no conversation '{old}'; create a new one"):
            use(old)
    assert store.uses("sha256:x", besides="")


def test_ids_are_not_paths(replica, tmp_path):
    (tmp_path / "secret").write_bytes(conversation("x").SerializeToString())
    store = replica()
    for name in ("../secret", str(tmp_path / "secret"), "", ".", "0" * 32, "0" * 31 + "\n", "A" * 32, "*" * 32):
        with pytest.raises(NotFoundError):
            store.get(name)
        with pytest.raises(NotFoundError):
            ask(store, name, "a")


def test_a_removed_conversation_is_gone_everywhere(replica):
    store, other = replica(), replica()
    identity = created(store, "a")
    assert questions(other, identity) == ["a"]
    store.remove(identity)
    for each in (store, other):
        with pytest.raises(NotFoundError):
            each.get(identity)
        with pytest.raises(NotFoundError):
            ask(each, identity, "b")


def test_it_is_known_whether_an_image_is_still_in_use(replica):
    store = replica()
    first, second, _ = created(store), created(store), created(store, image="sha256:y")
    assert store.uses("sha256:x", besides=first)
    store.remove(second)
    assert not store.uses("sha256:x", besides=first)
    assert store.uses("sha256:x", besides="")
    assert store.uses("sha256:y", besides=first)


def test_conversations_in_a_directory_have_a_quota(tmp_path):
    store = open_stores(StoreSettings(directory=tmp_path, conversation_bytes=100_000)).conversations
    identities = [created(store, "x" * 9_000) for _ in range(20)]
    kept = sum(path.stat().st_size for path in (tmp_path / "conversations").iterdir())
    assert 80_000 < kept <= 100_000
    assert questions(store, identities[-1])
    with pytest.raises(NotFoundError):
        store.get(identities[0])
    for i in range(3):  # those that grow take the place of others, too
        ask(store, identities[-1], str(i) * 9_000)
    kept = sum(path.stat().st_size for path in (tmp_path / "conversations").iterdir())
    assert 70_000 < kept <= 101_000
    assert len(questions(store, identities[-1])) == 4


def test_conversations_go_on_without_redis(redis, shared):
    stores, neighbour, stranger = shared("a"), shared("a"), shared("b")
    store = stores.conversations
    identity, unknown = created(store, "a"), created(stranger.conversations, "z")
    redis.stop()
    ask(store, identity, "b")
    begun = time.monotonic()
    for i in range(20):
        ask(store, identity, str(i))
    new = created(store, "new")
    assert time.monotonic() - begun < 2
    expected = ["a", "b", *map(str, range(20))]
    assert questions(store, identity) == expected
    assert questions(neighbour.conversations, identity) == expected  # another replica of the machine
    assert questions(stranger.conversations, unknown) == ["z"]
    with pytest.raises(UnavailableError, match="conversation_id: it cannot be reached at the moment; try again in a minute"):
        store.get(unknown)
    for call in (lambda: store.remove(identity), lambda: store.uses("sha256:x", "")):  # must not seem to be done
        with pytest.raises(UnavailableError, match="try again"):
            call()

    redis.start()
    for replica in (stores, neighbour, stranger):
        wait_until(lambda breaker=replica.breakers["redis"]: breaker.up)
    assert questions(stranger.conversations, identity) == expected
    assert questions(stranger.conversations, new) == ["new"]
    assert questions(store, unknown) == ["z"]
    ask(store, identity, "c")
    assert questions(stranger.conversations, identity) == [*expected, "c"]


def test_no_answer_is_lost_as_redis_comes_and_goes(redis, shared):
    """Also if it is back between a question and its answer, of which the question is still on the disk."""
    stores, begun = shared(), time.monotonic()
    identity = created(stores.conversations)
    with ThreadPoolExecutor(4) as threads:
        done = threads.map(lambda i: (time.sleep(0.1), ask(stores.conversations, identity, str(i))), range(150))
        for _ in range(3):
            time.sleep(0.3)
            redis.stop()
            time.sleep(0.3)
            redis.start()
        list(done)
    wait_until(lambda: stores.breakers["redis"].up)
    assert stores.breakers["redis"]._lost > begun
    # One that Redis took and could not say so any more is there twice.
    assert sorted({int(question) for question in questions(stores.conversations, identity)}) == list(range(150))


def test_what_waits_outlives_its_replica(redis, shared):
    killed = shared("a")
    identity = created(killed.conversations, "a")
    redis.stop()
    ask(killed.conversations, identity, "b")
    killed.close()
    redis.start()
    assert questions(shared("a").conversations, identity) == ["a", "b"]
    assert questions(shared("b").conversations, identity) == ["a", "b"]


def test_two_machines_that_went_on_are_both_kept(redis, shared):
    machines = shared("a"), shared("b")
    identity = created(machines[0].conversations, "first")
    for stores in machines:
        assert questions(stores.conversations, identity) == ["first"]
    redis.stop()
    for name, stores in zip("ab", machines, strict=True):
        ask(stores.conversations, identity, name)
        assert questions(stores.conversations, identity) == ["first", name]
    redis.start()
    for stores in machines:
        wait_until(lambda breaker=stores.breakers["redis"]: breaker.up)
    assert questions(machines[0].conversations, identity) in (["first", "a", "b"], ["first", "b", "a"])


def test_a_removed_conversation_does_not_come_back_from_a_copy(redis, shared):
    stores, other = shared("a"), shared("b")
    identity = created(stores.conversations, "private")
    other.conversations.get(identity)
    stores.conversations.remove(identity)
    redis.stop()
    ask(other.conversations, identity, "b")  # it cannot know
    redis.start()
    for replica in (stores, other):
        wait_until(lambda breaker=replica.breakers["redis"]: breaker.up)
        with pytest.raises(NotFoundError):
            replica.conversations.get(identity)


def test_two_continuations_of_one_conversation():
    point, other = region_to_proto(Point(1, 1)), region_to_proto(Point(2, 2))
    origin = pb.Conversation(turns=[pb.Turn(id="1"), pb.Turn(id="2"), pb.Turn(id="3")], regions={0: point, 1: point})
    theirs = pb.Conversation(turns=[pb.Turn(id="1"), pb.Turn(id="4")], regions={0: other, 1: point})
    ours = pb.Conversation(
        turns=[pb.Turn(id="1", answer="yes"), pb.Turn(id="2"), pb.Turn(id="5")], regions={0: point, 1: other, 2: point}
    )
    both = merged(origin, theirs, ours)
    assert [(turn.id, turn.answer) for turn in both.turns] == [("1", "yes"), ("4", ""), ("5", "")]
    assert dict(both.regions) == {0: other, 1: other, 2: point}
    assert merged(origin, both, ours) == both  # whoever writes it back twice


def test_a_redis_that_cannot_be_used_is_named(redis, tmp_path, monkeypatch):
    settings = StoreSettings(directory=tmp_path, redis_url=redis.url)
    check_servers(settings)
    with connect(redis.url) as client:
        client.config_set("requirepass", "p@ss")
        with pytest.raises(RuntimeError, match=f"stores.redis_url: {redis.url} refuses us .*; the password is read"):
            check_servers(settings)
        monkeypatch.setenv("FERRET_REDIS_URL", redis.url.replace("//", "//:p%40ss@"))
        check_servers(settings)
        assert StoreSettings(directory=tmp_path) == settings  # the password stays where it was
        monkeypatch.setenv("FERRET_REDIS_PASSWORD", "wrong")
        with pytest.raises(RuntimeError, match=r"stores.redis_url: .*invalid"):
            check_servers(settings)
    redis.stop()
    with pytest.raises(RuntimeError, match=r"stores.redis_url: no server answers at .*refused"):
        check_servers(settings)


def test_a_conversation_that_is_damaged_here_does_not_keep_the_others_from_redis(shared, redis, tmp_path):
    stores = shared()
    redis.stop()
    identities = [created(stores.conversations, str(i)) for i in range(3)]
    damaged = stores.conversations.spool.path / stores.conversations.spool.all_names()[0]
    damaged.write_bytes(b"\xff")
    redis.start()
    wait_until(lambda: stores.breakers["redis"].up)
    assert stores.conversations.spool.all_names() == []
    assert damaged.with_name(f"{damaged.name}.bad").exists()
    assert sum(bool(stores.conversations.client.exists(f"ferret:conversation:{each}")) for each in identities) == 2
