"""What the gateway keeps of a conversation, however its answers end."""

import asyncio
import json
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import grpc
import pytest
from ferret.v1 import ferret_pb2 as pb
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError

from ferret_core.geometry import Point
from ferret_core.images import image_id, open_image
from services.calls import CallAbortedError
from services.errors import UnavailableError
from services.wire import region_to_proto
from tests.scripted_platform import Platform, Stream


@pytest.fixture
def platform(tmp_path):
    return Platform(tmp_path)


def test_an_answer_is_kept_before_the_client_sees_its_end(platform):
    """Or a next question, asked at once, would not know it."""

    async def check():
        await platform.create()
        platform.decoder.say("A dog [0, 0, 500, 500]", None)
        platform.decoder.say(".", "stop")
        async for response in platform.ask():
            at_the_end = response.HasField("finish")
            assert platform.turns() == [("Why?", "A dog [0, 0, 500, 500]." if at_the_end else "", at_the_end)]
        assert at_the_end
        (turn,) = platform.gateway.stores.conversations.get(platform.id).turns
        assert [span.phrase for span in turn.spans] == ["A dog"]
        assert turn.model == "playground"

    asyncio.run(check())


@pytest.mark.parametrize("fails", [True, False])
def test_what_came_of_an_answer_is_kept(platform, fails):
    """When the decoder fails, and when the client goes away."""

    async def check():
        await platform.create()
        platform.decoder.say("Because")
        events = platform.ask()
        await anext(events)
        rest = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)  # it waits for the decoder
        if fails:
            platform.decoder.deltas.put_nowait(RuntimeError("out of memory"))
        else:
            rest.cancel()
        with pytest.raises(CallAbortedError if fails else asyncio.CancelledError):
            await rest
        assert platform.turns() == [("Why?", "Because", False)]

    asyncio.run(check())


def test_a_late_answer_leaves_the_turn_that_replaced_its_own_alone(platform):
    async def check():
        await platform.create()
        platform.decoder.say("Late")
        late = platform.ask()
        await anext(late)
        platform.decoder.say("Again", "stop")
        assert len([event async for event in platform.ask(turn=0)]) == 2
        platform.decoder.say(" and long", "stop")
        assert len([event async for event in late]) == 2  # its client has it all the same
        assert platform.turns() == [("Why?", "Again", True)]

    asyncio.run(check())


def test_a_question_that_the_client_sends_again_is_kept_once(platform):
    """As gRPC says it; two questions that are the same are two."""

    async def check():
        await platform.create(pb.Turn(question="Who?"))
        lost = platform.ask()
        asked = asyncio.ensure_future(anext(lost))
        while len(platform.turns()) < 2:
            await asyncio.sleep(0.01)
        asked.cancel()
        platform.metadata["grpc-previous-rpc-attempts"] = "1"
        await platform.answer("Because")
        assert platform.turns()[1:] == [("Why?", "Because", True)]
        await platform.answer("Because")
        assert len(platform.turns()) == 3

    asyncio.run(check())


def test_a_turn_without_an_answer_is_not_put_to_the_model(platform):
    async def check():
        await platform.create(pb.Turn(question="Who?"), pb.Turn(question="Where?", answer="Here."))
        for _ in range(2):
            platform.decoder.say("So", "stop")
        requests = (
            {"conversation_id": platform.id},
            {"image_bytes": platform.image, "history": [pb.Turn(question="Where?", answer="Here.")]},
        )
        for request in requests:
            async for _ in platform.gateway.Chat(pb.ChatRequest(question="Why?", **request), platform.context):
                pass
        first, second = platform.decoder.prompts
        assert first == second
        assert [question for question, _, _ in platform.turns()] == ["Who?", "Where?", "Why?"]

    asyncio.run(check())


@pytest.mark.parametrize("limit", [{"max_turns": 1}, {"max_text_length": 10}])
def test_limits_hold_for_conversations(tmp_path, limit):
    platform = Platform(tmp_path, **limit)

    async def check():
        await platform.create(pb.Turn(question="Who?"))
        for _ in range(2):
            platform.decoder.say("So", "stop")
        async for _ in platform.ask():
            pass
        before = platform.turns()
        with pytest.raises(CallAbortedError, match="conversation_id: at most 1"):
            await anext(platform.ask())
        assert platform.turns() == before

    asyncio.run(check())


def test_regions_that_nothing_mentions_make_room_for_others(tmp_path):
    platform = Platform(tmp_path, max_regions=2)
    point = region_to_proto(Point(5, 5))

    async def check():
        await platform.create()
        for numbers in ([0, 1], [2, 3]):
            platform.decoder.say("So", "stop")
            async for _ in platform.ask(regions=dict.fromkeys(numbers, point)):
                pass
            assert sorted(platform.gateway.stores.conversations.get(platform.id).regions) == numbers
        with pytest.raises(CallAbortedError, match="regions: at most 2"):
            await anext(platform.ask(regions=dict.fromkeys([4, 5, 6], point)))

    asyncio.run(check())


def test_an_answer_goes_on_where_a_lost_decoder_left_it(platform):
    """Twice; the client sees one answer."""

    async def check():
        await platform.create()
        platform.decoder.say("A dog", token_id=7)
        platform.decoder.deltas.put_nowait(ActorDiedError())
        platform.decoder.say(" and", token_id=8)
        platform.decoder.deltas.put_nowait(
            grpc.aio.AioRpcError(grpc.StatusCode.CANCELLED, grpc.aio.Metadata(), grpc.aio.Metadata())
        )
        platform.decoder.say(" a cat.", "stop", token_id=9)
        responses = [response async for response in platform.ask()]
        assert [response.text_delta.text for response in responses[:-1]] == ["A dog", " and", " a cat."]
        assert platform.decoder.begun == [[], [7], [7, 8]]
        assert platform.turns() == [("Why?", "A dog and a cat.", True)]

    asyncio.run(check())


def test_the_same_image_is_encoded_once(platform):
    async def check():
        await platform.create()
        for _ in range(3):
            await platform.answer("So")
        platform.decoder.say("So", "stop")
        async for _ in platform.gateway.Chat(pb.ChatRequest(question="Why?", image_bytes=platform.image), platform.context):
            pass
        assert platform.encoded == 1

    asyncio.run(check())


def test_a_decoder_that_is_lost_after_the_end_is_not_missed(platform):
    async def check():
        await platform.create()
        platform.decoder.say("So.", "stop", token_id=9)
        Stream.dies_after_the_end = True
        try:
            responses = [response async for response in platform.ask()]
        finally:
            Stream.dies_after_the_end = False
        assert [response.WhichOneof("event") for response in responses] == ["text_delta", "finish"]
        assert platform.decoder.begun == [[]]

    asyncio.run(check())


def test_a_full_queue_does_not_end_an_answer_that_has_begun(platform):
    async def check():
        await platform.create()
        platform.decoder.say("A dog", token_id=7)
        platform.decoder.deltas.put_nowait(ActorDiedError())
        platform.decoder.deltas.put_nowait(BackPressureError(1, 1))
        platform.decoder.say(".", "stop", token_id=8)
        assert [response.text_delta.text async for response in platform.ask()][:2] == ["A dog", "."]
        platform.decoder.deltas.put_nowait(BackPressureError(1, 1))
        with pytest.raises(CallAbortedError, match="the platform is busy; try again in"):
            [_ async for _ in platform.ask()]

    asyncio.run(check())


def test_a_question_that_comes_to_nothing_leaves_its_conversation_as_it_was(platform):
    async def refused(**fields):
        platform.decoder.deltas.put_nowait(BackPressureError(1, 1))
        with pytest.raises(CallAbortedError, match="the platform is busy"):
            [_ async for _ in platform.ask(**fields)]

    async def check():
        await platform.create(pb.Turn(question="Who?", answer="Nobody"))
        regions = {number: region_to_proto(Point(number, 5)) for number in range(3)}
        await platform.answer("So", question="Why [region0]?", regions=regions)
        before = platform.gateway.stores.conversations.get(platform.id)
        for fields in ({}, {"turn": 0}, {"turn": 1, "regions": {0: region_to_proto(Point(9, 9))}}):
            await refused(**fields)
            assert platform.gateway.stores.conversations.get(platform.id) == before
        await platform.answer("So", question="Again?")
        assert [question for question, _, _ in platform.turns()] == ["Who?", "Why [region0]?", "Again?"]

        waiting = asyncio.ensure_future(anext(platform.ask("First?")))
        while len(platform.turns()) < 4:
            await asyncio.sleep(0.01)
        platform.gateway.stores.conversations.update(
            platform.id, lambda conversation: conversation.turns.add(question="Second?").id
        )
        platform.decoder.deltas.put_nowait(BackPressureError(1, 1))
        with pytest.raises(CallAbortedError):
            await waiting
        assert [question for question, _, _ in platform.turns()][3:] == ["First?", "Second?"]  # nobody's position changes

    asyncio.run(check())


def test_a_conversation_that_cannot_be_put_back_does_not_hide_what_went_wrong(platform, monkeypatch):
    async def fail(*_):
        raise UnavailableError("conversation_id: it cannot be reached")

    async def check():
        await platform.create()
        monkeypatch.setattr(platform.gateway.questions, "take_back", fail)
        platform.decoder.deltas.put_nowait(BackPressureError(1, 1))
        with pytest.raises(CallAbortedError, match="the platform is busy"):
            [_ async for _ in platform.ask()]

    asyncio.run(check())


def test_what_ends_a_call_survives_its_way_to_the_proxy():
    error = pickle.loads(pickle.dumps(CallAbortedError("say why", grpc.StatusCode.NOT_FOUND)))
    assert (str(error), error.code) == ("say why", grpc.StatusCode.NOT_FOUND)


def test_decoders_that_keep_dying_are_given_up(platform):
    async def check():
        await platform.create()
        for _ in range(9):
            platform.decoder.deltas.put_nowait(ActorDiedError())
        with pytest.raises(CallAbortedError, match="a replica went away; try again"):
            [_ async for _ in platform.ask()]
        assert 2 < len(platform.decoder.begun) < 9

    asyncio.run(check())


def test_a_person_gets_all_that_is_kept_of_a_conversation(platform):
    async def check():
        await platform.create()
        await platform.answer("größer", question="Who?", regions={0: region_to_proto(Point(5, 5))})
        assert set(await platform.export()) == {"conversation.json", "image.png"}
        await platform.call("RateAnswer", rating=pb.RATING_UP, comment="yes")
        await platform.call("RateAnswer", rating=pb.RATING_DOWN)
        files = await platform.export()
        kept = json.loads(files["conversation.json"])
        assert (kept["id"], kept["regions"]["0"]["point"]) == (platform.id, {"x": 5.0, "y": 5.0})
        (turn,) = kept["turns"]
        assert (turn["question"], turn["answer"], turn["rating"]) == ("Who?", "größer", "RATING_DOWN")
        assert files["image.png"] == platform.image
        ratings = [json.loads(line) for line in files["ratings.jsonl"].splitlines()]
        assert [(each["rating"], each["comment"]) for each in ratings] == [("up", "yes"), ("down", "")]
        assert {each["image_id"] for each in ratings} == {image_id(platform.image)}
        assert not any("image" in each for each in ratings)

    asyncio.run(check())


def logged(platform):
    return [json.loads(line) for line in platform.gateway.stores.answers.lines(platform.id)]


def test_answers_are_written_down_where_the_settings_say_so(tmp_path):
    async def check(platform):
        await platform.create()
        await platform.answer("A dog.", question="What is [region1]?", regions={1: region_to_proto(Point(5, 5))})
        stopped = platform.ask()
        platform.decoder.say("Because")
        await anext(stopped)
        await stopped.aclose()  # no answer that came to its end
        return logged(platform)

    assert asyncio.run(check(Platform(tmp_path / "silent"))) == []
    platform = Platform(tmp_path, stores={"log_conversations": True})
    (entry,) = asyncio.run(check(platform))
    turn = platform.gateway.stores.conversations.get(platform.id).turns[0]
    assert {name: entry[name] for name in entry if name != "time"} == {
        "conversation": platform.id,
        "turn": 0,
        "turn_id": turn.id,
        "image_id": image_id(platform.image),
        "model": "playground",
        "question": "What is [region1]?",
        "regions": {"1": {"point": [5.0, 5.0]}},
        "answer": "A dog.",
        "finish_reason": "stop",
    }
    assert asyncio.run(platform.export())["answers.jsonl"] == (json.dumps(entry) + "\n").encode()


def test_logs_of_a_conversation_that_nobody_used_can_be_deleted(tmp_path):
    platform = Platform(tmp_path, stores={"log_conversations": True})

    async def check():
        await platform.create()
        await platform.answer("So")
        await platform.call("RateAnswer", rating=pb.RATING_UP)
        platform.gateway.stores.conversations.remove(platform.id)  # as if its time had come
        await platform.call("DeleteConversation")
        assert logged(platform) == platform.gateway.stores.feedback.lines(platform.id) == []
        with pytest.raises(CallAbortedError, match="no conversation"):
            await platform.call("DeleteConversation")

    asyncio.run(check())


@pytest.mark.parametrize("log", ["feedback", "answers"])
def test_what_is_written_down_while_its_conversation_is_deleted_goes_too(tmp_path, log):
    """However the two come between each other."""
    platform = Platform(tmp_path, stores={"log_conversations": True})
    log = getattr(platform.gateway.stores, log)
    append = log.append

    def delete_and_append(conversation_id, entry):
        log.append = append
        platform.gateway.conversations.delete(conversation_id)
        append(conversation_id, entry)

    async def check():
        await platform.create(pb.Turn(question="Who?", answer="Nobody"))
        log.append = delete_and_append
        await platform.answer("So")
        if log.append != append:
            await platform.call("RateAnswer", rating=pb.RATING_UP)
        assert log.append == append
        assert log.lines(platform.id) == []

    asyncio.run(check())


def test_nothing_of_a_deleted_conversation_is_left(tmp_path):
    platform = Platform(tmp_path, stores={"feedback_images": True, "log_conversations": True})
    secrets = platform.image[100:150], b"Who is this?", b"Nobody", b"a comment"

    def found():
        contents = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
        return [secret for secret in secrets if any(secret in content for content in contents)]

    async def check():
        await platform.create()
        point, other = region_to_proto(Point(5, 5)), region_to_proto(Point(6, 6))
        await platform.answer("Nobody", question="Who is this?", regions={0: point})
        await platform.answer("Nobody", question="Who is this [region0]?", regions={0: point}, turn=0)
        await platform.answer("Nobody", question="Who is this? [region0]", regions={0: other}, turn=0)  # in its place
        await platform.call("RateAnswer", rating=pb.RATING_UP, comment="a comment")
        assert found() == list(secrets)
        assert b'"image": "' in (await platform.export())["ratings.jsonl"]
        late = platform.ask(question="Who is this?")
        platform.decoder.say("Nobody")
        await anext(late)  # an answer that is being written
        await platform.call("DeleteConversation")
        assert found() == []
        assert platform.gateway.stores.cache.get(list(platform.gateway.stores.cache._values)) == []
        platform.decoder.say("at all", "stop")
        assert [response.WhichOneof("event") async for response in late] == ["text_delta", "finish"]
        assert found() == []
        for method in ("GetConversation", "ExportConversation", "DeleteConversation"):
            with pytest.raises(CallAbortedError, match="conversation_id: no conversation"):
                await platform.call(method)
        with pytest.raises(CallAbortedError, match="image_id: no image"):
            await platform.gateway.GetImage(pb.GetImageRequest(image_id=image_id(platform.image)), platform.context)

    asyncio.run(check())


def test_an_image_stays_as_long_as_a_conversation_is_about_it(platform):
    async def check():
        await platform.create()
        first = platform.id
        await platform.create()
        second, platform.id = platform.id, first
        await platform.call("DeleteConversation")
        platform.id = second
        await platform.answer("So")
        assert platform.turns() == [("Why?", "So", True)]
        await platform.call("DeleteConversation")
        assert platform.gateway.stores.images.get(image_id(platform.image)) is None

    asyncio.run(check())


def test_a_conversation_that_starts_while_the_last_one_goes_has_its_image(platform):
    """However the two come between each other."""

    async def check():
        await platform.create()
        stores, doomed = platform.gateway.stores, platform.id
        images, conversations = stores.images, stores.conversations
        remove = images.remove

        def create_and_remove(identity):
            images.remove = remove
            created = pb.Conversation(image=pb.ImageInfo(id=identity))
            conversations.create(created)
            platform.id = created.id
            remove(identity)

        images.remove = create_and_remove
        await asyncio.to_thread(platform.gateway.conversations.delete, doomed)
        await platform.call("GetConversation")
        assert images.get(image_id(platform.image)) == platform.image

    asyncio.run(check())


def test_pictures_are_fetched_from_hosts_that_are_allowed_and_from_no_others(platform, tmp_path, monkeypatch):
    async def ask(gateway):
        request = pb.ChatRequest(question="Why?", image_url="https://pictures.example/a.png")
        return [response async for response in gateway.Chat(request, platform.context)]

    async def fetch(url, hosts, max_bytes):
        assert (url, hosts) == ("https://pictures.example/a.png", ("pictures.example",))
        return platform.image

    async def check():
        with pytest.raises(CallAbortedError, match="image_url: this platform fetches no pictures"):
            await ask(platform.gateway)
        monkeypatch.setattr("services.pictures.fetch_image", fetch)
        open_platform = Platform(tmp_path, allowed_image_hosts=("pictures.example",))
        open_platform.decoder.say("So", "stop")
        *_, end = await ask(open_platform.gateway)
        assert end.finish.image_id == image_id(platform.image)

    asyncio.run(check())


def test_pictures_that_are_being_decoded_keep_nobody_else_waiting(platform, monkeypatch):
    """More of them than asyncio has threads."""
    go_on = threading.Event()

    def decode(*arguments):
        go_on.wait()
        return open_image(*arguments)

    async def check():
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(5))
        await platform.create()
        monkeypatch.setattr("services.pictures.open_image", decode)
        request = pb.UploadImageRequest(image_bytes=platform.image)
        uploads = [asyncio.create_task(platform.gateway.UploadImage(request, platform.context)) for _ in range(10)]
        try:
            await asyncio.sleep(0.1)  # until they are in their threads
            await asyncio.wait_for(platform.call("GetConversation"), 60)
        finally:
            go_on.set()
            await asyncio.gather(*uploads)

    asyncio.run(check())


@pytest.mark.parametrize(
    "fields",
    [{"question": " "}, {"sampling": {"max_new_tokens": 0}}, {"regions": {n: {} for n in range(65)}}],
    ids=["question", "sampling", "regions"],
)
def test_what_is_wrong_with_a_question_is_found_before_its_picture_is_looked_at(platform, monkeypatch, fields):
    monkeypatch.setattr("services.pictures.open_image", mock.Mock(side_effect=AssertionError("it was decoded")))

    async def check():
        request = pb.ChatRequest(**{"question": "Why?", "image_bytes": platform.image} | fields)
        with pytest.raises(CallAbortedError) as refused:
            await anext(platform.gateway.Chat(request, platform.context))
        assert refused.value.code == grpc.StatusCode.INVALID_ARGUMENT

    asyncio.run(check())


def test_a_picture_is_kept_only_for_a_question_that_is_good(platform):
    async def check():
        request = pb.ChatRequest(question="Why?", image_bytes=platform.image, sampling={"max_new_tokens": 1_000_000})
        with pytest.raises(CallAbortedError, match="max_new_tokens: must be less"):
            await anext(platform.gateway.Chat(request, platform.context))
        assert platform.gateway.stores.images.get(image_id(platform.image)) is None

    asyncio.run(check())
