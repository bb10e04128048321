"""What is computed once, and what must be computed anew."""

import asyncio
from functools import partial

import pytest
import torch
from ferret.v1 import ferret_pb2 as pb
from ferret.v1.image_encoder_pb2 import EncodeImageResponse
from ferret.v1.region_sampler_pb2 import EncodeRegionsResponse

from ferret_core.geometry import Box, ImageSize, Mask, Point, Polygon, Scribble
from services import features
from services.features import Features, Versions
from services.settings import DecoderSettings, EncoderSettings, ModelSettings
from services.stage_wire import tensor_from_proto, tensor_to_proto
from services.stores.caches import MemoryCache

SIZE = ImageSize(64, 48)
BOX = Box(10, 10, 30, 30)
SAME_BOUNDS = (
    BOX,
    Polygon(((10, 10), (30, 10), (30, 30), (10, 30))),
    Polygon(((10, 10), (30, 20), (10, 30))),
    Scribble(((12, 12), (28, 28)), 4),
    Scribble(((12, 28), (28, 12)), 4),
    Mask.from_array(Polygon(((10, 10), (30, 20), (10, 30))).to_mask(SIZE)),
)


class Stages:
    """An encoder and a sampler that count what they are asked for, and give each a value of its own."""

    def __init__(self, cache=None):
        self.cache, self.images, self.regions = cache or MemoryCache(2**20), [], []

    async def encode_image(self, settings, data):
        self.images.append(data)
        values = torch.full((1, 2, 3), len(self.images), dtype=dtype(settings))
        return EncodeImageResponse(image_features=tensor_to_proto(values), version=Versions.of(settings).image)

    async def encode_regions(self, settings, image_features, size, regions):
        assert size == SIZE
        values = torch.arange(len(self.regions), len(self.regions) + len(regions), dtype=dtype(settings))[:, None].expand(-1, 2)
        self.regions.extend(regions)
        return EncodeRegionsResponse(region_features=tensor_to_proto(values), version=Versions.of(settings).region)

    def features(self, encoder=None, sampler=None, **settings):
        """As a gateway with these settings has them, which the stages have, too, unless it is told otherwise."""
        own = ModelSettings(**{"path": "playground"} | settings)
        return Features(
            own, self.cache, partial(self.encode_image, encoder or own), partial(self.encode_regions, sampler or own)
        )


def dtype(settings):
    return getattr(torch, settings.dtype or "float32")


def image(name="a"):
    return pb.ImageInfo(id=f"sha256:{name}", width=SIZE.width, height=SIZE.height)


def of_image(model, of="a"):
    return float(tensor_from_proto(asyncio.run(model.of_image(image(of), b"x")).image_features)[0, 0, 0])


def of_regions(model, *regions, of="a"):
    async def ask():
        return await model.of_regions(image(of), regions, await model.of_image(image(of), b"x"))

    rows = tensor_from_proto(asyncio.run(ask()))
    assert rows.shape == (len(regions), 2)
    return rows[:, 0].tolist()


def test_an_image_is_encoded_once():
    stages = Stages()
    assert [of_image(stages.features(), name) for name in "aab"] == [1, 1, 2]
    assert len(stages.images) == 2


def test_a_region_is_sampled_once():
    stages = Stages()
    model = stages.features()
    assert of_regions(model, Point(1, 1), Point(2, 2)) == [0, 1]
    assert of_regions(model, Point(3, 3), Point(2, 2), Point(1, 1), Point(3, 3)) == [2, 1, 0, 2]
    assert of_regions(model, Point(1, 1), of="b") == [3]
    assert len(stages.regions) == 4


def test_shapes_with_the_same_bounding_box_share_nothing():
    stages = Stages()
    assert len({shape.coordinates(SIZE) for shape in SAME_BOUNDS if not isinstance(shape, Scribble)}) == 1
    for _ in range(2):
        assert of_regions(stages.features(), *SAME_BOUNDS) == list(range(len(SAME_BOUNDS)))
    assert len(stages.regions) == len(SAME_BOUNDS)


def test_what_has_a_say_in_a_value_is_part_of_its_key(monkeypatch, tmp_path):
    stages = Stages()

    def values(**settings):
        model = stages.features(**settings)
        return of_image(model), *of_regions(model, BOX)

    assert values() == values() == values(llm_decoder=DecoderSettings(threads=2)) == (1, 0)
    assert values(dtype="float16") == (2, 1)
    assert values(image_encoder=EncoderSettings(num_gpus=1)) == (3, 2)
    assert values(image_encoder=EncoderSettings(threads=2)) == (4, 3)
    assert values(region_sampler=EncoderSettings(threads=2)) == (1, 4)
    monkeypatch.setattr(features, "SAMPLING", 2)
    assert values() == (1, 5)
    monkeypatch.setattr(features, "PREPROCESSING", 2)
    assert values() == (5, 6)
    monkeypatch.setattr(features, "revision", lambda path: "trained further")
    assert values() == (6, 7)


def test_what_is_kept_of_an_image_can_be_forgotten():
    """Of all models, with all regions that were ever asked about; nothing of another image."""
    stages = Stages()
    models = stages.features(), stages.features(dtype="float16")

    def ask(name):
        for model in models:
            of_regions(model, BOX, Point(1, 1), of=name)

    ask("a")
    ask("b")
    stages.cache.forget(image("a").id)
    ask("b")
    assert (len(stages.images), len(stages.regions)) == (4, 8)
    ask("a")
    assert (len(stages.images), len(stages.regions)) == (6, 12)


def test_without_a_cache_all_is_computed():
    stages = Stages(MemoryCache(0))
    for _ in range(2):
        of_image(stages.features())
    assert len(stages.images) == 2


@pytest.mark.parametrize("stage", ["encoder", "sampler"])
def test_what_another_version_made_is_not_kept(stage):
    """A change is being deployed: a stage computes in another type already, or still. Its features serve all the same."""
    stages, other = Stages(), ModelSettings(path="playground", dtype="float16")
    assert of_regions(stages.features(), BOX) == [0]
    mixed = stages.features(**{stage: other})
    assert of_regions(mixed, Point(1, 1), BOX, of="b") == [1, 2]
    assert of_regions(mixed, Point(1, 1), BOX, of="b") == [3, 4]
    assert of_regions(stages.features(), Point(1, 1), BOX, of="b") == [5, 6]
    assert of_regions(stages.features(), Point(1, 1), BOX, of="b") == [5, 6]


def test_rows_of_two_types_come_together():
    """One that is kept, and one that a sampler of another version makes."""
    stages = Stages()
    assert of_regions(stages.features(), BOX) == [0]
    mixed = stages.features(sampler=ModelSettings(path="playground", dtype="bfloat16"))
    assert of_regions(mixed, Point(1, 1), BOX) == [1, 0]
