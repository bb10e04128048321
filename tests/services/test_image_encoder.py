"""The ImageEncoder deployment: pictures that come at once. The model is the bundled one."""

import asyncio
import threading

import pytest
import torch
from ferret.v1.image_encoder_pb2 import EncodeImageRequest

from ferret_core.data.playground import playground_example
from ferret_core.images import ImageError, image_bytes
from services.image_encoder import ImageEncoder
from services.settings import ModelSettings
from services.stage_wire import tensor_from_proto
from tests.batches import hold_first


@pytest.fixture
def encoder():
    return ImageEncoder(ModelSettings(path="playground", dtype="float32"))


@pytest.fixture
def pictures():
    return [image_bytes(playground_example("test", i).image) for i in range(4)]


def encode(encoder, *pictures):
    """Asked for together, and met in one batch if the encoder makes one; exceptions in their places."""

    async def ask():
        calls = (encoder.EncodeImage(EncodeImageRequest(image_bytes=data)) for data in pictures)
        return await asyncio.gather(*calls, return_exceptions=True)

    responses = asyncio.run(ask())
    return [each if isinstance(each, Exception) else tensor_from_proto(each.image_features) for each in responses]


def test_together_as_alone(encoder, pictures):
    alone = [encode(encoder, data)[0] for data in pictures]
    sizes = hold_first(encoder.batches, 4)
    together = encode(encoder, *pictures)
    assert sum(sizes) == 4
    assert len(sizes) <= 2
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_one_bad_picture_among_good_ones(encoder, pictures):
    results = encode(encoder, pictures[0], b"no picture", pictures[1])
    assert isinstance(results[1], ImageError)
    for place, data in ((0, pictures[0]), (2, pictures[1])):
        torch.testing.assert_close(results[place], encode(encoder, data)[0], atol=1e-5, rtol=0)


def test_one_picture_is_decoded_at_a_time(encoder, pictures, monkeypatch):
    """Three come, and meet in the decoder if the encoder lets them."""
    meeting, met, decode = threading.Barrier(2), [], encoder._pixels

    def meet(data):
        try:
            meeting.wait(0.2)
            met.append(data)
        except threading.BrokenBarrierError:
            meeting.reset()
        return decode(data)

    monkeypatch.setattr(encoder, "_pixels", meet)
    encode(encoder, *pictures[:3])
    assert not met
