"""What the gateway keeps of a conversation, however its answers end. Its models are scripts."""

import asyncio
from types import SimpleNamespace

import pytest
from ferret.v1 import ferret_pb2 as pb
from ferret.v1.image_encoder_pb2 import EncodeImageResponse

from ferret_core.data.playground import playground_example
from ferret_core.engine import Delta
from ferret_core.geometry import Point
from ferret_core.images import image_bytes
from services.errors import CallAbortedError
from services.gateway import Gateway
from services.settings import PlatformSettings
from services.stage_wire import delta_to_proto
from services.wire import region_to_proto


class Decoder:
    """Says what it is told to, to whoever asks next."""

    def __init__(self):
        self.Decode, self.deltas, self.prompts = SimpleNamespace(remote=self.decode), asyncio.Queue(), []

    def options(self, stream):
        return self

    def decode(self, request):
        self.prompts.append(list(request.input_ids))
        return Stream(self.deltas)

    def say(self, text, finish_reason=None):
        self.deltas.put_nowait(delta_to_proto(Delta(text, 1, finish_reason)))


class Stream:
    """Deltas up to the one that ends an answer."""

    def __init__(self, deltas):
        self.deltas, self.ended = deltas, False

    def cancel(self):
        pass

    def __aiter__(self):
        return self

    async def __anext__(self):
        if self.ended:
            raise StopAsyncIteration
        delta = await self.deltas.get()
        if isinstance(delta, Exception):
            raise delta
        self.ended = bool(delta.finish_reason)
        return delta


async def encode(request):
    return EncodeImageResponse()


class Platform:
    """A gateway, its decoder, and a conversation about an image."""

    def __init__(self, directory, **settings):
        directories = {f"{name}_directory": str(directory / name) for name in ("image", "conversation", "feedback")}
        self.decoder = Decoder()
        encoder = SimpleNamespace(EncodeImage=SimpleNamespace(remote=encode))
        stages = {"playground": (encoder, None, self.decoder)}
        self.gateway = Gateway(PlatformSettings(**directories, **settings), stages)
        self.image = image_bytes(playground_example("test", 0).image)
        self.context = SimpleNamespace(set_code=lambda code: None, set_details=lambda details: None)

    async def create(self, *turns):
        request = pb.CreateConversationRequest(image_bytes=self.image, turns=turns)
        self.id = (await self.gateway.CreateConversation(request, self.context)).conversation.id

    def ask(self, question="Why?", **fields):
        return self.gateway.Chat(pb.ChatRequest(conversation_id=self.id, question=question, **fields), self.context)

    def turns(self):
        """Questions, answers, and whether they came to their end."""
        turns = self.gateway.conversations.get(self.id).turns
        return [(turn.question, turn.answer, bool(turn.finish_reason)) for turn in turns]


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
        (turn,) = platform.gateway.conversations.get(platform.id).turns
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
            assert sorted(platform.gateway.conversations.get(platform.id).regions) == numbers
        with pytest.raises(CallAbortedError, match="regions: at most 2"):
            await anext(platform.ask(regions=dict.fromkeys([4, 5, 6], point)))

    asyncio.run(check())
