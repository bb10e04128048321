"""The mixture: the original's order, one sample for one place of the run, and records that cannot be used."""

import dataclasses
import json
import logging
import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ferret_core.data.config import DataConfig, SourceConfig
from ferret_core.data.files import write_records
from ferret_core.data.mixture import Mixture, mixture_order
from ferret_core.data.records import Object, Record
from ferret_core.data.samples import build_sample
from ferret_core.geometry import Box, ImageSize
from ferret_core.prompt import Turn
from tests.conftest import GOLDEN

SIZE = ImageSize(64, 48)


def record(name: str, image: str = "a.png") -> Record:
    return Record(
        id=name, image=image, size=SIZE, turns=(Turn(f"What is [region0], {name}?", f"It is {name}."),),
        regions=(Object(Box(10, 10, 40, 30)),), dataset="made",
    )  # fmt: skip


@pytest.fixture
def write(tmp_path):
    Image.new("RGB", SIZE, "teal").save(tmp_path / "a.png")

    def write(name: str, records: list[Record], weight: float = 1.0) -> SourceConfig:
        write_records(tmp_path / f"{name}.jsonl", records)
        return SourceConfig(path=str(tmp_path / f"{name}.jsonl"), weight=weight)

    return write


@pytest.fixture
def sources(write) -> list[SourceConfig]:
    return [
        write("many", [record(f"m{i}") for i in range(20)], 0.25),
        write("few", [record(f"f{i}") for i in range(4)], 2.5),
    ]


def names(mixture: Mixture, indices) -> list[str]:
    """The records of samples, by what is asked."""
    texts = (mixture.processor.tokenizer.decode([i for i in mixture[g].input_ids.tolist() if i >= 0]) for g in indices)
    return [text.split("<region_fea>")[1].split("?")[0].strip(" ,") for text in texts]


def same(a, b) -> bool:
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))


# ---- order -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["none", "mult"])
def test_repeats_the_recorded_order(name, seed):
    recorded = json.loads((GOLDEN / "train" / "mixing.json").read_text())
    ids = [[e["id"] for e in json.loads((GOLDEN / "train" / "data" / file).read_text())] for file in recorded["files"]]
    by_name = [3 if file.startswith("git_instruction") else 1 for file in recorded["files"]]
    weights = recorded["multiple"] if name == "mult" else by_name
    order = mixture_order([len(each) for each in ids], weights, random.Random(seed))
    every = [each for group in ids for each in group]
    assert [every[i] for i in order] == recorded[f"{name}_seed{seed}"]


def test_weights_are_kept():
    order = mixture_order([1000, 10, 100], [0.2, 3, 1.5], random.Random(0))
    seen = np.bincount(order, minlength=1110)
    assert seen[:1000].sum() == 200
    assert seen[:1000].max() == 1
    assert (seen[1000:1010] == 3).all()
    assert seen[1010:].sum() == 150
    assert set(seen[1010:]) == {1, 2}


def test_an_epoch_is_a_new_order_and_a_new_choice(sources, tiny_processor):
    mixture = Mixture(sources, tiny_processor, DataConfig(points="uniform"), seed=5)
    assert len(mixture) == 5 + 10
    first, second = names(mixture, range(15)), names(mixture, range(15, 30))
    assert first != second
    for epoch in (first, second):
        counts = Counter(epoch)
        assert sum(n for name, n in counts.items() if name.startswith("m")) == 5
        assert sorted(n for name, n in counts.items() if name.startswith("f")) == [2, 2, 3, 3]
    assert {n for n in first if n.startswith("m")} != {n for n in second if n.startswith("m")}


def test_a_sample_is_a_function_of_seed_and_place(sources, tiny_processor):
    a, b = (Mixture(sources, tiny_processor, DataConfig(), seed=5) for _ in range(2))
    other = Mixture(sources, tiny_processor, DataConfig(), seed=6)
    backwards = {g: b[g] for g in (31, 16, 14, 3, 0)}
    assert all(same(a[g], sample) for g, sample in backwards.items())
    assert not all(same(a[g], other[g]) for g in range(3))
    by_worker = DataLoader(a, sampler=[0, 3, 14, 16], batch_size=None, num_workers=2)
    assert all(same(sample, backwards[g]) for g, sample in zip((0, 3, 14, 16), by_worker, strict=True))


def test_text_length_is_that_of_the_record(write, tiny_processor):
    texts = [record("x" * n) for n in (1, 5, 9, 30)]
    mixture = Mixture([write("texts", texts)], tiny_processor, DataConfig(), seed=0)
    expected = [len(f"What is [region0], {name}?It is {name}.") for name in names(mixture, range(8))]
    assert [mixture.text_length(g) for g in range(8)] == expected


def test_an_original_file_is_a_source(original_processor, tmp_path):
    path = tmp_path / "vg_objects.json"
    path.write_bytes((GOLDEN / "train" / "data" / path.name).read_bytes())
    mixture = Mixture([SourceConfig(path=str(path), images=str(GOLDEN / "images"))], original_processor, DataConfig(), seed=0)
    assert len(mixture) == 2
    assert len(mixture[0].region_points) + len(mixture[1].region_points) == 4


def test_a_source_without_images(write, tiny_processor):
    text = Record(id="t", image="", size=ImageSize(0, 0), turns=(Turn("Why?", "So."),))
    sample = Mixture([write("text", [text])], tiny_processor, DataConfig(), seed=0)[0]
    assert same(sample, build_sample(text, None, tiny_processor, DataConfig(), random.Random("0:0")))


@pytest.mark.parametrize(("weight", "count", "message"), [
    (0.0, 1, "must be above 0, got 0.0"), (-1.0, 1, "must be above 0, got -1.0"), (1.0, 0, "has no records"),
])  # fmt: skip
def test_bad_sources_are_named(weight, count, message, write, tiny_processor):
    with pytest.raises(ValueError, match=rf"bad\.jsonl:? {message}"):
        Mixture([write("bad", [record("r")] * count, weight)], tiny_processor, DataConfig(), seed=0)
    with pytest.raises(ValueError, match=r"data.sources: needs at least one file"):
        Mixture([], tiny_processor, DataConfig(), seed=0)


# ---- bad records -----------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(write) -> SourceConfig:
    """Ten records, the third without its picture and the sixth with its object outside."""
    records = [record(f"r{i}") for i in range(10)]
    records[2] = record("r2", image="missing.png")
    records[5] = dataclasses.replace(records[5], regions=(Object(Box(10, 10, 500, 30)),))
    return write("damaged", records)


def test_a_bad_record_ends_the_run(damaged, tiny_processor):
    mixture = Mixture([damaged], tiny_processor, DataConfig(), seed=0)
    bad = [g for g in range(10) if mixture._order(0)[g] in (2, 5)]
    for g in bad:
        with pytest.raises(ValueError, match=r"damaged.jsonl: line (3|6) \(made\): record r[25]: .*data.skip_bad is 0"):
            mixture[g]


def test_bad_records_are_left_out_up_to_the_limit(damaged, tiny_processor, caplog):
    mixture = Mixture([damaged], tiny_processor, DataConfig(skip_bad=2), seed=0)
    order = mixture._order(0).tolist()
    with caplog.at_level(logging.WARNING):
        seen = names(mixture, range(10))
        again = names(mixture, range(10))
    expected = []
    for g in range(10):  # the next usable record of the epoch takes the place
        while order[g % 10] in (2, 5):
            g += 1
        expected.append(f"r{order[g % 10]}")
    assert seen == again == expected
    assert len(caplog.records) == 2  # each is reported once
    assert "left out: " in caplog.text
    assert "damaged.jsonl: line 3 (made): record r2: image" in caplog.text
    assert "damaged.jsonl: line 6 (made): record r5: regions[0]: box: x2 = 500 is outside the image" in caplog.text

    with pytest.raises(ValueError, match=r"bad record 2; data.skip_bad = 1 allows no more"):
        names(Mixture([damaged], tiny_processor, DataConfig(skip_bad=1), seed=0), range(10))


def test_loader_processes_count_together(damaged, tiny_processor):
    def load(skip_bad: int) -> list:
        mixture = Mixture([damaged], tiny_processor, DataConfig(skip_bad=skip_bad), seed=0)
        return list(DataLoader(mixture, sampler=range(10), batch_size=None, num_workers=2))

    alone = Mixture([damaged], tiny_processor, DataConfig(skip_bad=2), seed=0)
    assert all(same(sample, alone[g]) for g, sample in enumerate(load(2)))
    with pytest.raises(ValueError, match=r"data.skip_bad = 1 allows no more"):
        load(1)


def test_not_one_usable_record(write, tiny_processor):
    mixture = Mixture([write("none", [record("r", image="missing.png")])], tiny_processor, DataConfig(skip_bad=9), seed=0)
    with pytest.raises(ValueError, match=r"data.sources: not one record can be used"):
        mixture[0]
