"""The playground world: exact, varied, the same everywhere, and never shared between splits."""

import collections
import hashlib
import json
import re

import numpy as np
import pytest
from PIL import Image

from ferret_core.data.playground import (
    GESTURES,
    KINDS,
    MIXED,
    SPLITS,
    STYLES,
    THINGS,
    WORLDS,
    World,
    generate_scene,
    playground_example,
    scene_rng,
)
from ferret_core.data.playground.objects import LOOK_ALIKES
from ferret_core.data.playground.questions import Interview
from ferret_core.data.playground.styles import SPRITES, open_style
from ferret_core.data.playground.tokenizer import build_tokenizer
from ferret_core.data.pointing import point_at
from ferret_core.data.records import Record, region_from_json, region_to_json
from ferret_core.geometry import Box, Point, mask_bounds, mask_iou


def test_there_is_enough_to_see():
    assert len(THINGS) >= 200
    assert len({thing.name for thing in THINGS}) == len(THINGS)
    assert {"animal", "food", "vehicle", "tool"} <= {thing.category for thing in THINGS}
    for style in ("3d", "flat", "ink"):
        assert {thing.sprite for thing in THINGS} == {path.stem for path in (SPRITES / style).glob("*.webp")}
    assert "MIT License" in (SPRITES / "LICENSE").read_text()


@pytest.mark.parametrize("world", [World(), WORLDS["train"], World(style="flat"), World(style="comic", hard=True)], ids=str)
def test_scenes_are_exact(world):
    for index in range(12):
        scene = generate_scene(scene_rng("train", index), world)
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


@pytest.mark.parametrize(
    ("split", "index", "digest"),
    [("validation", 3, "726484b6c14887de"), ("test", 0, "8632b10ce0e8664f"), ("test", 9, "ed8824c5fd55b236")],
)
def test_the_scenes_that_models_are_compared_on_stay(split, index, digest):
    """Figures of different checkpoints are comparable only if not a pixel and not a word of these ever changes."""
    example = playground_example(split, index)
    content = np.asarray(example.image).tobytes() + json.dumps(example.record.to_json(), sort_keys=True).encode()
    assert hashlib.sha256(content).hexdigest()[:16] == digest


def test_another_seed_makes_other_scenes_and_the_first_is_none():
    first, same, other = (playground_example("test", 1, seed=seed) for seed in (0, 0, 5))
    assert first.image.tobytes() == same.image.tobytes() == playground_example("test", 1).image.tobytes()
    assert other.image.size != first.image.size
    assert (first.record.id, other.record.id) == ("playground-test-1", "playground-test-1-5")


@pytest.mark.parametrize("style", [*STYLES, MIXED])
def test_the_same_things_in_every_style(style):
    """A style changes how things look; that others exist does not change the scenes of one."""
    plain, drawn = (playground_example("test", 4, style=s) for s in ("3d", style))
    assert [o.thing for o in drawn.scene.objects] == [o.thing for o in plain.scene.objects]
    assert (drawn.image.tobytes() == plain.image.tobytes()) == (style == "3d")
    assert drawn.image.tobytes() == playground_example("test", 4, style=style).image.tobytes()


def test_training_scenes_are_drawn_in_all_styles():
    pictures = [set() for _ in range(2)]
    for index in range(12):
        for seen, style in zip(pictures, (None, "3d"), strict=True):
            seen.add(playground_example("train", index, 1, style=style).image.tobytes())
    assert len(pictures[0] & pictures[1]) < 6


def test_training_scenes_are_harder():
    def measure(world):
        scenes = [generate_scene(scene_rng("train", index), world) for index in range(60)]
        sides = [max(o.box.x2 - o.box.x1, o.box.y2 - o.box.y1) for s in scenes for o in s.objects]
        twins = [len(s.objects) - len({o.thing for o in s.objects}) for s in scenes]
        return np.quantile(sides, 0.1), np.mean(twins)

    (small, twins), (smaller, more_twins) = measure(World()), measure(World(hard=True))
    assert smaller < 0.9 * small
    assert more_twins > 1.1 * twins


def test_hard_questions_are_about_look_alikes_and_what_is_not_there():
    scene = playground_example("test", 3).scene
    here = {o.thing.name for o in scene.objects}

    def ask(hard):
        interview = Interview(scene, np.random.default_rng(0), hard=hard)
        answers = [interview.locate().answer for _ in range(1000)]
        vain = [match[1] for answer in answers if (match := re.search(r"no (.*) in the image", answer))]
        return len(vain) / len(answers), np.mean([bool(LOOK_ALIKES.get(name, frozenset()) & here) for name in vain])

    (easy, alike), (hard, more_alike) = ask(False), ask(True)
    assert 0.1 < easy < 0.2 < hard < 0.3
    assert more_alike > alike + 0.1


def test_look_alikes_are_things():
    names = {thing.name for thing in THINGS}
    assert set(LOOK_ALIKES) <= names
    assert all(other != name and name in LOOK_ALIKES[other] for name, others in LOOK_ALIKES.items() for other in others)


def test_a_directory_of_anyones_pictures_is_a_style(tmp_path):
    for number, thing in enumerate(THINGS[:150]):
        code = thing.sprite.removesuffix("-fe0f")
        name = (f"{code.upper()}.png", f"emoji_u{code}.png", f"{thing.sprite}.webp")[number % 3]
        Image.new("RGBA", (40, 40), (number, 0, 255, 255)).save(tmp_path / name)
    assert set(open_style(tmp_path)) == set(THINGS[:150])
    example = playground_example("test", 4, style=tmp_path)
    assert {o.thing for o in example.scene.objects} <= set(THINGS[:150])
    assert example.record.license == ""  # nobody knows


def test_bad_styles_say_what_is_expected(tmp_path):
    with pytest.raises(ValueError, match="'oil' is neither one of 3d, flat, ink, comic nor a directory"):
        playground_example("test", 0, style="oil")
    (tmp_path / "1f415.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"draws 1 of the 218 things; expected files named by code point"):
        playground_example("test", 0, style=tmp_path)
    for thing in THINGS:
        (tmp_path / f"{thing.sprite}.png").write_bytes(b"")
    open_style.cache_clear()
    with pytest.raises(ValueError, match=r"\.png is no picture that can be read"):
        playground_example("test", 0, style=tmp_path)


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
    with pytest.raises(ValueError, match="expected one of object, point, box"):
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
