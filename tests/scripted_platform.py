"""A gateway whose models are scripts."""

import asyncio
import io
import zipfile
from types import SimpleNamespace
from unittest import mock

import torch
from ferret.v1 import ferret_pb2 as pb
from ferret.v1.image_encoder_pb2 import EncodeImageResponse
from ferret.v1.region_sampler_pb2 import EncodeRegionsResponse
from ray.exceptions import ActorDiedError

from ferret_core.data.playground import playground_example
from ferret_core.engine import Delta
from ferret_core.images import image_bytes
from services.gateway import Gateway
from services.settings import PlatformSettings
from services.stage_wire import delta_to_proto, tensor_to_proto


class Decoder:
    """Says what it is told to, to whoever asks next."""

    def __init__(self):
        self.Decode, self.deltas, self.prompts, self.begun = SimpleNamespace(remote=self.decode), asyncio.Queue(), [], []

    def options(self, **options):
        return self

    def decode(self, request):
        self.prompts.append(list(request.input_ids))
        self.begun.append(list(request.answer_ids))
        return Stream(self.deltas)

    def say(self, text, finish_reason=None, token_id=0):
        self.deltas.put_nowait(delta_to_proto(Delta(text, 1, finish_reason, token_id)))


class Stream:
    """Deltas up to the one that ends an answer."""

    dies_after_the_end = False

    def __init__(self, deltas):
        self.deltas, self.ended = deltas, False

    def cancel(self):
        pass

    def __aiter__(self):
        return self

    async def __anext__(self):
        if self.ended and self.dies_after_the_end:
            raise ActorDiedError
        if self.ended:
            raise StopAsyncIteration
        delta = await self.deltas.get()
        if isinstance(delta, Exception):
            raise delta
        self.ended = bool(delta.finish_reason)
        return delta


class Platform:
    """A gateway, its decoder, and a conversation about an image."""

    def __init__(self, directory, decoder=None, **settings):
        self.directory, self.decoder, self.encoded = directory, decoder or Decoder(), 0
        encoder = SimpleNamespace(EncodeImage=SimpleNamespace(remote=self.encode))
        sampler = SimpleNamespace(EncodeRegions=SimpleNamespace(remote=self.encode_regions))
        stages = {"playground": (encoder, sampler, self.decoder)}
        stores = {"directory": directory} | settings.pop("stores", {})
        self.gateway = Gateway(PlatformSettings(stores=stores, **settings), stages)
        self.image = image_bytes(playground_example("test", 0).image)
        self.metadata = {}
        self.context = mock.Mock(invocation_metadata=lambda: self.metadata.items())

    async def encode(self, request):
        self.encoded += 1
        return EncodeImageResponse(version=self.gateway.models["playground"].features.versions.image)

    async def encode_regions(self, request):
        return EncodeRegionsResponse(region_features=tensor_to_proto(torch.zeros(len(request.regions), 1)))

    async def create(self, *turns):
        request = pb.CreateConversationRequest(image_bytes=self.image, turns=turns)
        self.id = (await self.gateway.CreateConversation(request, self.context)).conversation.id

    def ask(self, question="Why?", **fields):
        return self.gateway.Chat(pb.ChatRequest(conversation_id=self.id, question=question, **fields), self.context)

    async def answer(self, text, **fields):
        """Asks and is answered."""
        self.decoder.say(text, "stop")
        return [response async for response in self.ask(**fields)]

    async def call(self, method, **fields):
        """A method that takes a conversation."""
        request = getattr(pb, f"{method}Request")(conversation_id=self.id, **fields)
        return await getattr(self.gateway, method)(request, self.context)

    async def export(self):
        """The files of an export by name."""
        archive = zipfile.ZipFile(io.BytesIO((await self.call("ExportConversation")).archive))
        return {name: archive.read(name) for name in archive.namelist()}

    def turns(self):
        """Questions, answers, and whether they came to their end."""
        turns = self.gateway.stores.conversations.get(self.id).turns
        return [(turn.question, turn.answer, bool(turn.finish_reason)) for turn in turns]
