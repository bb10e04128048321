"""What is computed once, and what must be computed anew."""

import asyncio

from ferret.v1 import ferret_pb2 as pb
from ferret.v1.tensor_pb2 import Tensor

from ferret_core.geometry import Box, ImageSize, Mask, Point, Polygon, Scribble
from services import features
from services.features import Features
from services.settings import DecoderSettings, EncoderSettings, ModelSettings
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

    async def encode_image(self, data):
        self.images.append(data)
        return Tensor(shape=[1, 2, 3], data=bytes([len(self.images)] * 24))

    async def encode_regions(self, image_features, size, regions):
        assert size == SIZE
        first = len(self.regions)
        self.regions.extend(regions)
        return Tensor(shape=[len(regions), 2], data=b"".join(bytes([first + i] * 8) for i in range(len(regions))))

    def features(self, **settings):
        model = ModelSettings(**{"path": "playground"} | settings)
        return Features(model, self.cache, self.encode_image, self.encode_regions)


def image(name="a"):
    return pb.ImageInfo(id=f"sha256:{name}", width=SIZE.width, height=SIZE.height)


def of_regions(model, *regions, of="a"):
    tensor = asyncio.run(model.of_regions(image(of), regions, Tensor()))
    assert list(tensor.shape) == [len(regions), 2]
    return [tensor.data[i * 8] for i in range(len(regions))]


def test_an_image_is_encoded_once():
    stages = Stages()
    first, again, other = (asyncio.run(stages.features().of_image(image(name), b"x")) for name in "aab")
    assert first == again != other
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
        return asyncio.run(model.of_image(image(), b"x")).data[0], *of_regions(model, BOX)

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
            asyncio.run(model.of_image(image(name), b"x"))
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
        asyncio.run(stages.features().of_image(image(), b"x"))
    assert len(stages.images) == 2
