"""The RegionSampler deployment: regions that come at once. The model is the bundled one."""

import asyncio

import pytest
import torch
from ferret.v1.region_sampler_pb2 import EncodeRegionsRequest

from ferret_core.geometry import Box, Point
from services.region_sampler import RegionSampler
from services.settings import ModelSettings
from services.stage_wire import tensor_from_proto, tensor_to_proto
from services.wire import region_to_proto
from tests.batches import hold_first

REGIONS = [Point(30, 20), Box(4, 4, 60, 40), Box(10, 20, 90, 90), Point(80, 70)]


@pytest.fixture
def sampler():
    return RegionSampler(ModelSettings(path="playground", dtype="float32"))


@pytest.fixture
def requests(sampler):
    """About two pictures, of two, one and two regions."""
    torch.manual_seed(0)
    config = sampler.model.config
    maps = [torch.randn(1, config.num_patches, config.vision_config.hidden_size) for _ in range(2)]

    def request(image, *regions):
        return EncodeRegionsRequest(
            image_features=tensor_to_proto(maps[image]),
            image_width=100,
            image_height=100,
            regions=map(region_to_proto, regions),
        )

    return [request(0, *REGIONS[:2]), request(1, REGIONS[2]), request(0, *REGIONS[2:])]


def encode(sampler, *requests):
    """Asked for together; exceptions in their places."""

    async def ask():
        return await asyncio.gather(*map(sampler.EncodeRegions, requests), return_exceptions=True)

    responses = asyncio.run(ask())
    return [each if isinstance(each, Exception) else tensor_from_proto(each.region_features) for each in responses]


def assert_same(one, other):
    """But for rounding, which is of the size of the largest value."""
    torch.testing.assert_close(one, other, atol=1e-5 * float(one.abs().max()), rtol=0)


def test_together_as_alone(sampler, requests):
    """A region's embedding is the same whoever is there: the gateway keeps it for other questions."""
    alone = [encode(sampler, request)[0] for request in requests]
    for regions, request in zip(alone, requests, strict=True):
        assert regions.shape == (len(request.regions), sampler.model.config.text_config.hidden_size)
    sizes = hold_first(sampler.batches, 5)
    together = encode(sampler, *requests)
    assert sum(sizes) == 5
    assert len(sizes) <= 2
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)


def test_maps_of_another_type(sampler, requests):
    """Of an encoder that a change of `dtype` has not reached yet, or the other way round; together with one of its own type."""
    expected = [encode(sampler, request)[0] for request in requests[:2]]
    map_ = requests[0].image_features
    map_.CopyFrom(tensor_to_proto(tensor_from_proto(map_).bfloat16()))
    hold_first(sampler.batches, 3)
    others, same = encode(sampler, *requests[:2])
    torch.testing.assert_close(others, expected[0], atol=0.02 * float(expected[0].abs().max()), rtol=0)
    assert_same(same, expected[1])


def test_one_bad_region_among_good_ones(sampler, requests):
    good = encode(sampler, requests[1])[0]
    requests[0].regions[0].CopyFrom(region_to_proto(Box(400, 400, 500, 500)))  # outside of its picture
    results = encode(sampler, *requests)
    assert isinstance(results[0], ValueError)
    assert_same(results[1], good)
    assert torch.is_tensor(results[2])
