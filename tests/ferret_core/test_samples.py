"""Training samples against recordings of the original (tests/golden/README.md, section 7), and what holds for any sample.

Set FERRET_GOLDEN to a larger set of recordings to run all of it: configurations and seeds are taken as they come.
"""

import dataclasses
import hashlib
import json
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ferret_core.data.config import DataConfig
from ferret_core.data.files import read_records
from ferret_core.data.images import Images
from ferret_core.data.records import Object, Record
from ferret_core.data.samples import Sample, build_sample, pack, pad, place_regions, tokenize
from ferret_core.geometry import Box, ImageSize, Mask, Point, Scribble, mask_bounds, rle_encode
from ferret_core.model.modeling import IGNORE_INDEX
from ferret_core.prompt import EOS_TOKEN, REGION_TOKEN, Turn, answer_ranges, write_turns
from tests.conftest import GOLDEN

TRAIN = GOLDEN / "train"
ITEMS = json.loads((TRAIN / "items.json").read_text())
CASES = [pytest.param(recorded["config"], item, id=f"{name}-{item['id']}-{item['seed']}")
         for name, recorded in ITEMS.items() for item in recorded["items"]]  # fmt: skip
SIZE = ImageSize(400, 200)


@pytest.fixture(scope="module")
def records() -> dict[str, Record]:
    images = Images(GOLDEN / "images")
    return {record.id: record for path in sorted((TRAIN / "data").glob("*.json")) for record in read_records(path, images)}


def config_of(recorded: dict) -> DataConfig:
    """Our settings for the original's: `segment_mask|center` is a point of the mask, `center` one of the box."""
    place = recorded["point_input_sample"]
    return DataConfig(
        points=place.split("|")[-1],
        use_masks="segment_mask" in place,
        keep_form=recorded["refer_previous_point"],
        max_length=recorded.get("model_max_length", 2048),
    )


class Listening(random.Random):
    """Notes what is thrown, in the form of the recordings."""

    def __init__(self, seed: object) -> None:
        super().__init__(seed)
        self.calls: list[list] = []

    def choice(self, seq):
        self.calls.append(["random.choice", list(seq), result := super().choice(seq)])
        return result

    def gauss(self, mu=0.0, sigma=1.0):
        self.calls.append(["random.gauss", mu, sigma, result := super().gauss(mu, sigma)])
        return result

    def sample(self, population, k, **_):
        result = super().sample(population, k)
        digest = hashlib.sha256(json.dumps(result).encode()).hexdigest()[:16]
        self.calls.append(["random.sample", len(population), k, f"sha256:{digest}"])
        return result


def contract(sample: Sample, processor) -> tuple[list[int], list[int]]:
    """Ids and labels with one placeholder, -200, for the image, as they are recorded."""
    is_image = sample.input_ids == processor.image_token_id
    first = is_image & (is_image.cumsum(0) == 1)
    kept = first | ~is_image
    return torch.where(is_image, -200, sample.input_ids)[kept].tolist(), sample.labels[kept].tolist()


@pytest.mark.parametrize(("config", "item"), CASES)
def test_repeats_the_recorded_sample(config, item, records, original_processor):
    record, data, rng = records[item["id"]], config_of(config), Listening(item["seed"])
    image = Image.open(GOLDEN / "images" / record.image).convert("RGB")
    if "error" in item:
        with pytest.raises(
            ValueError, match=rf"record {record.id}: regions\[\d\]: object: its mask has no pixel near the point"
        ):
            build_sample(record, image, original_processor, data, rng)
        return
    placed = place_regions(record, data, rng)
    assert rng.calls == item["random_calls"]
    assert write_turns(placed.turns, has_image=True) == item["prompt"]
    assert len(placed.regions) == item["n_regions"]
    for region, mask, expected in zip(placed.regions, placed.masks, item["regions"], strict=True):
        assert list(region.coordinates(record.size)) == expected["coor"]
        assert mask.shape == (record.size.height, record.size.width) == tuple(expected["shape_wh"])[::-1]
        assert int(mask.sum()) == expected["nonzero"]
        assert list(mask_bounds(mask)) == expected["bbox"]
        assert rle_encode(mask) == expected["rle_hw"]["counts"]

    sample = build_sample(record, image, original_processor, data, random.Random(item["seed"]))
    ids, labels = contract(sample, original_processor)
    assert ids == item["input_ids"][: data.max_length]
    assert labels == item["labels"][: data.max_length]
    assert sample.region_points.shape == (ids.count(original_processor.tokenizer.convert_tokens_to_ids(REGION_TOKEN)), 512, 2)
    assert list(sample.pixel_values[0].shape) == item["image_shape"]
    assert hashlib.sha256(sample.pixel_values[0].numpy().tobytes()).hexdigest() == item["image_sha256"]


def test_points_lie_in_their_regions(records, original_processor):
    record = records["gi0"]
    image = Image.open(GOLDEN / "images" / record.image).convert("RGB")
    for seed in range(4):
        sample = build_sample(record, image, original_processor, DataConfig(), random.Random(seed))
        masks = place_regions(record, DataConfig(), random.Random(seed)).masks
        for points, mask in zip(sample.region_points, masks, strict=True):
            x, y = (points * torch.tensor(record.size)).round().long().unbind(-1)
            assert mask[y, x].all()


# ---- where points fall -----------------------------------------------------------------------------------------------


def ring() -> Mask:
    y, x = np.mgrid[: SIZE.height, : SIZE.width]
    distance = np.hypot(x - 200, y - 100)
    return Mask.from_array((distance > 60) & (distance < 80))


def one_object(mask: Mask | None, turns: int = 1) -> Record:
    turn = Turn("What is [region0]?", "A ring [box0].")
    return Record(
        id="r", image="r.png", size=SIZE, turns=(turn,) * turns, regions=(Object(Box(120, 20, 280, 180), mask),),
        boxes=(Box(120, 20, 280, 180),),
    )  # fmt: skip


@pytest.mark.parametrize("points", ["center", "gaussian", "uniform"])
@pytest.mark.parametrize("mask", [None, ring()], ids=["box", "mask"])
def test_every_point_meets_its_object(points, mask):
    """Whatever is thrown, a point lies in its box, and with `use_masks` on the mask: no record is unusable by chance."""
    seen = set()
    for seed in range(60):
        placed = place_regions(one_object(mask), DataConfig(points=points), random.Random(seed))
        region, cover = placed.regions[0], placed.masks[0]
        seen.add(region.kind)
        inside = (mask or Box(120, 20, 280, 180)).to_mask(SIZE)
        assert cover.any()
        assert not (cover & ~inside).any()
        if region.kind == "point":
            assert inside[round(region.y), round(region.x)]
            assert placed.turns[0].answer == "A ring [300, 100, 700, 900]."
    assert seen == {"point", "box"}


def test_uniform_points_are_everywhere_and_gaussian_ones_near_the_middle():
    def spread(points: str) -> np.ndarray:
        data = DataConfig(points=points, use_masks=False)
        shown = [place_regions(one_object(None), data, random.Random(seed)).regions[0] for seed in range(600)]
        return np.array([region.coordinates(SIZE) for region in shown if region.kind == "point"]) - (200, 100)

    assert not spread("center").any()
    assert spread("gaussian").std(0) == pytest.approx([24, 24], rel=0.15)  # 0.15 of 160
    assert spread("uniform").std(0) == pytest.approx([46.2, 46.2], rel=0.1)  # 160 / sqrt(12)


def test_a_point_that_misses_the_mask_is_an_error_that_names_the_setting():
    data = DataConfig(use_masks=False)  # the middle of the box is the hole of the ring
    seed = next(s for s in range(9) if random.Random(s).choice(("point", "box")) == "point")
    with pytest.raises(ValueError, match=r"record r: regions\[0\]: object: its mask has no pixel near .* data.use_masks=true"):
        place_regions(one_object(ring()), data, random.Random(seed))


def test_form_is_thrown_for_each_question_unless_a_point_is_kept():
    def forms(keep: bool) -> set[tuple[str, ...]]:
        data = DataConfig(keep_form=keep, points="uniform", use_masks=False)
        return {tuple(r.kind for r in place_regions(one_object(None, 2), data, random.Random(s)).regions) for s in range(40)}

    assert forms(False) == {("point", "point"), ("point", "box"), ("box", "point"), ("box", "box")}
    assert forms(True) == {("point", "point"), ("box", "point"), ("box", "box")}

    data = DataConfig(keep_form=True, points="uniform", use_masks=False)
    seed = next(s for s in range(9) if random.Random(s).choice(("point", "box")) == "point")
    placed = place_regions(one_object(None, 2), data, random.Random(seed))
    assert placed.regions[0] == placed.regions[1]
    place = placed.turns[0].question.removeprefix("What is ").removesuffix(f" {REGION_TOKEN}?")
    assert placed.turns[1].answer == f"A ring {place}."


def test_within_a_question_an_object_is_shown_once_and_gestures_need_no_choice():
    box, scribble = Object(Box(10, 10, 60, 60)), Scribble([(100, 100), (120, 110)])
    turns = (Turn("Is [region0] [region0], not [region1]?", "No."),)
    record = Record(id="r", image="r.png", size=SIZE, turns=turns, regions=(box, scribble))
    rng = Listening(1)
    data = DataConfig(points="uniform", use_masks=False)
    placed = place_regions(record, data, rng)
    assert placed.regions[0] == placed.regions[1]
    assert placed.regions[2] == scribble
    assert [call[0] for call in rng.calls] == ["random.choice"]

    gestures = dataclasses.replace(record, regions=(Point(20.5, 30), scribble))
    rng = Listening(1)
    placed = place_regions(gestures, data, rng)
    assert not rng.calls
    assert placed.turns[0].question.startswith(f"Is [51, 150] {REGION_TOKEN} [51, 150] {REGION_TOKEN}, not [237, 4")
    assert np.array_equal(placed.masks[2], scribble.to_mask(SIZE))


@pytest.mark.parametrize(("change", "message"), [
    ({"turns": (Turn("Why?"),)}, r"record r: turns\[0\].answer is missing"),
    ({"turns": ()}, "record r: turns must not be empty"),
    ({"turns": (Turn(f"Is {REGION_TOKEN} it?", "Yes."),)}, r"record r: turns\[0\].question: '<region_fea>' is reserved"),
    ({"turns": (Turn("Why?", f"So.{EOS_TOKEN}"),)}, r"record r: turns\[0\].answer: '</s>' is reserved"),
    ({"regions": (Object(Box(10, 10, 500, 60)),)}, r"record r: regions\[0\]: box: x2 = 500 is outside the image"),
    ({"boxes": (Box(10, 10, 20, 201),)}, r"record r: boxes\[0\] = .* is reversed or outside the image"),
    ({"boxes": (Box(10, 10, 5, 20),)}, r"record r: boxes\[0\] = .* is reversed or outside the image"),
    ({"regions": (Object(Box(10, 10, 20, 20), Mask.from_array(np.ones((4, 4)))),)},
     r"record r: regions\[0\]: mask: its size 4 x 4 is not"),
])  # fmt: skip
def test_bad_records_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        place_regions(dataclasses.replace(one_object(None), **change), DataConfig(), random.Random(0))


# ---- tokens and labels -----------------------------------------------------------------------------------------------

WORDS = st.text(st.sampled_from("abé .,?'\n[]12✓"), min_size=1, max_size=12).filter(lambda t: t.strip() and t == t.strip())


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))
def test_labels_are_the_answers_and_nothing_else(original_processor, turns):
    prompt = write_turns([Turn(*turn) for turn in turns], has_image=True)
    ids, labels = tokenize(prompt, original_processor, 2048)
    learned = labels != IGNORE_INDEX
    assert torch.equal(labels[learned], ids[learned])
    said = original_processor.tokenizer.decode(labels[learned].tolist()).split(EOS_TOKEN)
    expected = [prompt[start:end].removesuffix(EOS_TOKEN).strip() for start, end in answer_ranges(prompt)]
    assert [text.strip() for text in said] == [*expected, ""]
    assert not learned[0]


def test_labels_with_the_playgrounds_tokenizer(tiny_processor):
    prompt = write_turns([Turn("Is it?", "a dog [1, 2, 3, 4]."), Turn("And it?", "a cat.")], has_image=True)
    ids, labels = tokenize(prompt, tiny_processor, 512)
    assert tiny_processor.tokenizer.decode(labels[labels != IGNORE_INDEX]) == " a dog [1, 2, 3, 4].</s> a cat.</s>"
    assert int((ids == tiny_processor.image_token_id).sum()) == tiny_processor.num_patches


def test_what_is_too_long_loses_its_end_but_not_its_image(records, original_processor):
    record = records["gi0"]
    image = Image.open(GOLDEN / "images" / record.image).convert("RGB")
    whole = build_sample(record, image, original_processor, DataConfig(), random.Random(0))
    region_token = original_processor.tokenizer.convert_tokens_to_ids(REGION_TOKEN)
    lengths = set()
    for max_length in range(148, 330, 7):
        short = build_sample(record, image, original_processor, DataConfig(max_length=max_length), random.Random(0))
        kept = min(max_length + original_processor.num_patches - 1, len(whole.input_ids))
        assert torch.equal(short.input_ids, whole.input_ids[:kept])
        assert torch.equal(short.labels, whole.labels[:kept])
        assert len(short.region_points) == (short.input_ids == region_token).sum()
        assert torch.equal(short.region_points, whole.region_points[: len(short.region_points)])
        lengths.add(len(short.region_points))
    assert lengths == {0, 1, 2, 3}
    with pytest.raises(ValueError, match=r"record gi0: data.max_length = 147 cuts off the image"):
        build_sample(record, image, original_processor, DataConfig(max_length=147), random.Random(0))


def test_a_mismatch_matters_only_within_the_limit(original_processor):
    """As in the original: what cannot be seen of a sample does not spoil the rest of it."""
    prompt = write_turns([Turn("Why?", "So it is, and has been."), Turn("Is it?", "No. ASSISTANT: Yes.")], has_image=False)
    assert (tokenize(prompt, original_processor, 2048)[1] == IGNORE_INDEX).all()
    ids, labels = tokenize(prompt, original_processor, 160)
    assert len(ids) == len(labels) == 160
    assert original_processor.tokenizer.decode(labels[labels != IGNORE_INDEX]).startswith("So it is, and")


def test_a_conversation_about_text_alone(original_processor):
    record = Record(id="t", image="", size=ImageSize(0, 0), turns=(Turn("Why?", "So."),))
    sample = build_sample(record, None, original_processor, DataConfig(), random.Random(0))
    assert sample.pixel_values.shape == (0, 3, 336, 336)
    assert sample.region_points.shape == (0, 512, 2)
    assert not (sample.input_ids == original_processor.image_token_id).any()
    with pytest.raises(ValueError, match=r"record r: needs its image, r.png"):
        build_sample(one_object(None), None, original_processor, DataConfig(), random.Random(0))


# ---- batches ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def samples(records, original_processor) -> list[Sample]:
    text = Record(id="t", image="", size=ImageSize(0, 0), turns=(Turn("Why?", "So."),))
    chosen = [records["gi0"], text, records["li0"], records["vg1"]]
    images = [Image.open(GOLDEN / "images" / r.image).convert("RGB") if r.image else None for r in chosen]
    return [build_sample(r, i, original_processor, DataConfig(), random.Random(1)) for r, i in zip(chosen, images, strict=True)]


def test_packing_keeps_every_sample(samples):
    batch = pack(samples)
    ends = batch["cu_seq_lens"].tolist()
    assert batch["cu_seq_lens"].dtype == torch.int32
    assert len(ends) == len(samples) + 1
    assert batch["max_length"] == max(len(s.input_ids) for s in samples)
    for sample, start, end in zip(samples, ends, ends[1:], strict=False):
        assert torch.equal(batch["input_ids"][0, start:end], sample.input_ids)
        assert torch.equal(batch["labels"][0, start:end], sample.labels)
        assert torch.equal(batch["position_ids"][0, start:end], torch.arange(len(sample.input_ids)))
    assert batch["pixel_values"].shape == (3, 3, 336, 336)
    assert batch["region_image"].tolist() == [0, 0, 0, 2, 2, 2]  # the second sample has no image, the third no region
    assert torch.equal(batch["region_points"], torch.cat([s.region_points for s in samples]))


def test_packing_masks_the_first_label(samples):
    learned = dataclasses.replace(samples[1], labels=samples[1].input_ids.clone())
    batch = pack([samples[0], learned, learned])
    assert (batch["labels"][0, batch["cu_seq_lens"][:-1].long()] == IGNORE_INDEX).all()
    assert torch.equal(learned.labels, learned.input_ids)  # the sample itself stays as it is


def test_padding_is_on_the_right(samples):
    batch = pad(samples)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    assert batch["input_ids"].shape == (4, max(len(s.input_ids) for s in samples))
    for row, sample in enumerate(samples):
        length = len(sample.input_ids)
        assert torch.equal(batch["input_ids"][row, :length], sample.input_ids)
        assert torch.equal(batch["labels"][row, :length], sample.labels)
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (batch["input_ids"].shape[1] - length)
        assert (batch["labels"][row, length:] == IGNORE_INDEX).all()
        assert not batch["input_ids"][row, length:].any()
    assert torch.equal(batch["region_image"], pack(samples)["region_image"])
