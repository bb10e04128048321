"""The playground world: exact, varied, the same everywhere, and never shared between splits."""

import collections
import json

import numpy as np
import pytest

from ferret_core.data.playground import GESTURES, KINDS, SPLITS, THINGS, generate_scene, playground_example, scene_rng
from ferret_core.data.playground.objects import SPRITES
from ferret_core.data.playground.tokenizer import build_tokenizer
from ferret_core.data.pointing import point_at
from ferret_core.data.records import Record, region_from_json, region_to_json
from ferret_core.geometry import Box, Point, mask_bounds, mask_iou


def test_there_is_enough_to_see():
    assert len(THINGS) >= 200
    assert len({thing.name for thing in THINGS}) == len(THINGS)
    assert {"animal", "food", "vehicle", "tool"} <= {thing.category for thing in THINGS}
    assert {thing.sprite for thing in THINGS} == {path.stem for path in SPRITES.glob("*.webp")}
    assert "MIT License" in (SPRITES / "LICENSE").read_text()


def test_scenes_are_exact():
    for index in range(20):
        scene = generate_scene(scene_rng("train", index))
        assert 2 <= len(scene.objects) <= 8
        assert scene.instances.shape == (scene.size.height, scene.size.width)
        for i, thing in enumerate(scene.objects):
            mask = scene.mask_of(i)
            assert mask.any()
            assert mask_bounds(mask) == thing.box.coordinates(scene.size)


def test_scenes_are_a_function_of_split_and_index():
    pictures = {}
    for split in SPLITS:
        for index in range(5):
            image = playground_example(split, index).image.tobytes()
            assert image == playground_example(split, index).image.tobytes()
            assert pictures.setdefault(image, (split, index)) == (split, index)
    assert len(pictures) == 15


def test_every_kind_of_question_is_asked_and_answers_are_grounded():
    kinds = collections.Counter()
    for index in range(60):
        example = playground_example("train", index, 8)
        kinds.update(example.kinds)
        assert len({turn.question for turn in example.record.turns}) == len(example.record.turns)
        for turn, kind in zip(example.record.turns, example.kinds, strict=True):
            assert turn.answer.endswith(".")
            assert kind not in ("name", "describe", "choose_name") or "[box" in turn.answer
    assert set(kinds) == set(KINDS)


def test_answers_are_true():
    """The boxes of an answer are boxes of things that it names, and what it counts is there."""
    for index in range(60):
        example = playground_example("train", index, 4, kinds=("name", "locate", "count", "describe"))
        boxes = {o.box: o.thing for o in example.scene.objects}
        for turn in example.record.turns:
            used = [example.record.boxes[int(part.split("]")[0])] for part in turn.answer.split("[box")[1:]]
            for box in used:
                thing = boxes[box]
                assert thing.name in turn.answer or thing.plural in turn.answer
            if turn.answer.startswith("The image shows"):
                assert sorted(used, key=str) == sorted(boxes, key=str)


@pytest.mark.parametrize("gesture", GESTURES)
def test_gestures_point_at_their_object(gesture):
    rng = np.random.default_rng(0)
    for index in range(10):
        scene = generate_scene(scene_rng("train", index))
        for i in range(len(scene.objects)):
            mask = scene.mask_of(i)
            region = point_at(mask, gesture, rng)
            drawn = region.to_mask(scene.size)
            if gesture == "mask":
                assert mask_iou(drawn, mask) == 1
            elif gesture == "box":
                assert mask_iou(drawn, scene.objects[i].box.to_mask(scene.size)) > 0.7
            elif isinstance(region, Point):
                assert mask[int(region.y), int(region.x)]
            else:
                assert (drawn & mask).any()


def test_records_survive_json():
    for index in range(10):
        record = playground_example("test", index).record
        assert Record.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_bad_records_name_the_field():
    good = playground_example("test", 0).record.to_json()
    with pytest.raises(ValueError, match="field 'turns' is missing"):
        Record.from_json({k: v for k, v in good.items() if k != "turns"})
    with pytest.raises(ValueError, match=r"\[region99\] is not among its"):
        Record.from_json(good | {"turns": [{"question": "What is [region99]?", "answer": "x"}]})
    with pytest.raises(ValueError, match="expected one of point, box"):
        region_from_json({"circle": [1, 2, 3]})
    assert region_from_json(region_to_json(Box(1, 2, 3, 4))) == Box(1, 2, 3, 4)


def test_plurals_and_articles():
    things = {thing.name: thing for thing in THINGS}
    assert [things[name].plural for name in ("fox", "battery", "key", "sandwich", "mouse", "bread")] == [
        "foxes", "batteries", "keys", "sandwiches", "mice", "bread",
    ]  # fmt: skip
    assert [things[name].a_name for name in ("owl", "unicorn", "hourglass", "grapes")] == [
        "an owl", "a unicorn", "an hourglass", "grapes",
    ]  # fmt: skip


def test_the_tokenizer_knows_numbers_and_loses_nothing():
    tokenizer = build_tokenizer(vocab_size=400, examples=5)
    number = {tokenizer.convert_ids_to_tokens(i) for n in (0, 45, 450, 1000) for i in tokenizer(str(n)).input_ids[1:]}
    assert number == {"0", "45", "450", "1000"}
    for text in ("It is a dog [1, 22, 333, 1000].", "naïve café 東京 🙂 two  spaces"):
        assert tokenizer.decode(tokenizer(text).input_ids[1:]) == text
