"""Readers of published data sets: what a download holds, in the layout it is published in, arrives in the scenes."""

import json
import pickle

import numpy as np
import pytest

from ferret_core.data.build.llava import ground
from ferret_core.data.build.reading import Problems, Request
from ferret_core.data.build.scene import Scene, SceneObject, clean_name, merge_doubles, to_region
from ferret_core.data.build.sources import SOURCES
from ferret_core.geometry import Box, ImageSize
from ferret_core.prompt import Turn
from tests.downloads import (
    annotation,
    coco_image,
    make_coco,
    make_flickr30k,
    make_llava,
    make_lvis,
    make_objects365,
    make_refcoco,
    make_visual_genome,
    write_json,
)


def read(source, root, split="train", skip_bad=0, **options):
    request = Request(root, split, Problems(skip_bad), **options)
    return list(SOURCES[source].read(request)), request.problems.messages


def absent(scene):
    return [name for name in scene.checked if scene.lacks(name)]


def test_coco(tmp_path):
    scenes, _ = read("coco", make_coco(tmp_path))
    scene = scenes[1]
    assert (scene.image, scene.coco_id, scene.size) == ("train2017/000000000025.jpg", 25, (640, 480))
    assert [each.name for each in scene.objects] == ["dog", "dog", "cat"]
    assert scene.objects[0].box == Box(10.5, 20.25, 110.5, 100.25)
    assert scene.captions == ("Two dogs and a cat, number 1.",)
    assert scene.partial == {"person"}  # a crowd: some people, nobody knows how many
    assert absent(scene) == ["bird", "bowl"]  # neither the crowd's person, nor a hot dog, which is a kind of dog by its words
    assert absent(scenes[0]) == ["person", "bird", "bowl"]
    assert scene.all_of("dog") == [0, 1]


def test_a_mask_is_the_union_of_its_polygons_inside_the_image():
    polygons = [[0, 0, 10, 0, 10, 10, 0, 10], [20.5, 0, 30, 0, 30, 50.7, 20, 50.7], [1, 1, 2, 2]]
    item = SceneObject(box=Box(0, 0, 30, 50), segmentation=polygons)
    mask = to_region(item, ImageSize(40, 50)).mask.to_mask(ImageSize(40, 50))
    assert mask[5, 5]
    assert mask[49, 25]
    assert not mask[5, 15]
    assert not mask[20, 5]
    empty = SceneObject(box=Box(0, 0, 9, 9), segmentation=[[1, 1, 2, 2]])
    assert to_region(empty, ImageSize(40, 50)).mask is None


def test_lvis_knows_what_is_absent_and_what_is_incomplete(tmp_path):
    (scene,), _ = read("lvis", make_lvis(tmp_path))
    assert scene.image == "train2017/000000000009.jpg"
    assert [each.name for each in scene.objects] == ["cup", "spoon", "bow"]
    # A mug may be called a cup, one bow is not told from the other; of zebras nothing is known.
    assert absent(scene) == ["cat"]
    assert scene.all_of("cup") == [0]
    assert scene.all_of("spoon") is None
    assert scene.all_of("bow") == [2]
    content = json.loads((tmp_path / "lvis_v1_train.json").read_text())
    content["images"][0]["neg_category_ids"] = [2, 4]  # nobody looked for the other kind of bow
    write_json(tmp_path / "lvis_v1_train.json", content)
    (scene,), _ = read("lvis", tmp_path)
    assert scene.all_of("bow") is None


def test_objects365(tmp_path):
    (scene,), _ = read("objects365", make_objects365(tmp_path))
    assert scene.image == "patch8/objects365_v1_00420917.jpg"
    assert [each.name for each in scene.objects] == ["duck", "shoes"]
    assert scene.objects[0].box == Box(600.5, 400.5, 640, 480)  # clamped
    assert absent(scene) == ["person", "cabinet", "horse"]  # no wild bird: a duck might be one
    assert scene.all_of("shoes") is None  # only the other ones


@pytest.mark.parametrize("options", [{"protocol": 0}, {"protocol": 2}, {"refs_as_json": True}])
def test_refcoco(tmp_path, options):
    (scene,), _ = read("refcoco", make_refcoco(tmp_path, **options))
    assert (scene.image, scene.coco_id) == ("train2014/COCO_train2014_000000581857.jpg", 581857)
    assert [(each.text, each.object, each.refers) for each in scene.descriptions] == [
        ("the lady with the blue shirt", 0, True),
        ("woman on left", 0, True),
        ("man on right", 1, True),
    ]
    assert [each.id for each in read("refcoco", tmp_path, "test")[0]] == ["581563"]
    assert read("refcoco", tmp_path, "validation")[0] == []


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'sprung')!r}, 'w')",))

    make_refcoco(tmp_path)
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps([Trap()]))
    with pytest.raises(ValueError, match=r"refs\(unc\).p: not a pickle of refs: asks for builtins.exec"):
        read("refcoco", tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_flickr30k(tmp_path):
    (scene,), _ = read("flickr30k", make_flickr30k(tmp_path))
    assert (scene.image, scene.size) == ("1000092795.jpg", (333, 500))
    assert scene.captions == (
        "Two young guys [box0] [box1] with shaggy hair [box2] stand in the yard.",
        "It shows a man [box0] in a green shirt [box3], outside.",
    )
    assert scene.objects[1].box == Box(150, 20, 250, 310)
    assert [(each.text, each.object) for each in scene.descriptions] == [("shaggy hair", 2), ("a man", 0), ("a green shirt", 3)]
    assert [each.id for each in read("flickr30k", tmp_path, "test")[0]] == ["1007129816"]


def test_visual_genome(tmp_path):
    (scene,), _ = read("visual-genome", make_visual_genome(tmp_path))
    scene = merge_doubles(scene)
    assert (scene.image, scene.coco_id) == ("VG_100K_2/1.jpg", 139)
    assert [(each.name, each.attributes) for each in scene.objects] == [("man", ()), ("horse", ("brown", "tall")), ("", ())]
    assert [(each.subject, each.predicate, each.object) for each in scene.relations] == [(0, "on", 1)]  # the first horse
    assert [(each.text, each.object) for each in scene.descriptions] == [("The man wears a red hat", 2)]
    assert scene.objects[2].box == Box(100, 50, 180, 110)
    assert absent(scene) == []  # nobody looked for anything
    assert scene.all_of("man") is None


def test_llava_is_grounded_by_any_detector(tmp_path):
    make_llava(tmp_path)
    (scene,), _ = read("llava", tmp_path)
    ((turn,),) = scene.dialogues
    assert turn.question == "What do you see?"
    # The second cat has been located; there is no hot dog, and "dog" is not to be found inside it.
    assert turn.answer == "A cat [box2] watches two dogs [box0] [box1]. The cat waits for a hot dog."

    results = [
        {"image_id": 9, "category_id": 17, "bbox": [1, 2, 30, 40], "score": 0.9},
        {"image_id": 9, "category_id": 18, "bbox": [1, 2, 30, 40], "score": 0.4},
        {"image_id": 9, "category_id": 52, "bbox": [5, 5, 50, 50], "score": 0.8},
    ]
    write_json(tmp_path / "results.json", results)
    (scene,), _ = read("llava", tmp_path, detections=tmp_path / "results.json")
    assert scene.dialogues[0][0].answer == "A cat [box0] watches two dogs. The cat waits for a hot dog [box1]."

    simple = {"000000000009.jpg": [{"label": "Cat", "box": [1, 2, 31, 42], "score": 0.9}]}
    write_json(tmp_path / "simple.json", simple)
    (scene,), _ = read("llava", tmp_path, detections=tmp_path / "simple.json")
    assert scene.objects[0].box == Box(1, 2, 31, 42)
    assert scene.dialogues[0][0].answer == "A cat [box0] watches two dogs. The cat waits for a hot dog."


def test_a_singular_that_could_be_one_of_several_is_not_located():
    objects = tuple(SceneObject(box=Box(x, 0, x + 50, 50), name=name) for x, name in ((0, "dog"), (60, "dog"), (120, "tv")))
    scene = Scene(id="1", image="1.jpg", size=ImageSize(640, 480), objects=objects)
    (turn,) = ground((Turn("?", "A dog and a television near the TV set. Dogs!"),), scene)
    assert turn.answer == "A dog and a television [box2] near the TV set. Dogs [box0] [box1]!"


def test_class_names_as_people_say_them():
    assert [clean_name(name) for name in ("Bow_(weapon)", "Cabinet/shelf", "hot dog", "Tree.")] == [
        "bow",
        "cabinet",
        "hot dog",
        "tree",
    ]


BAD = {
    "no box": ({"bbox": [10, 10, 0, 5]}, r"annotation 7: box \[10, 10, 0, 5\]: width and height must be positive"),
    "outside": ({"bbox": [700, 10, 5, 5]}, r"annotation 7: box \[700, 10, 5, 5\] lies outside the image \(640 x 480\)"),
    "no number": ({"bbox": ["a", 1, 2, 3]}, "annotation 7: "),
    "three numbers": ({"bbox": [1, 2, 3]}, "annotation 7: not enough values"),
    "category": ({"category_id": 99}, "annotation 7: category_id 99 is not among the categories"),
    "image": ({"image_id": 99}, "annotation 7: image_id 99 is not among the images"),
    "missing": ({"bbox": ...}, "annotation 7: field 'bbox' is missing"),
    "nan": ({"bbox": [float("nan"), 1, 2, 3]}, "annotation 7: .*outside"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_broken_item_is_named_and_left_out_only_on_demand(tmp_path, case):
    change, message = BAD[case]
    broken = {k: v for k, v in (annotation(7, 9, 18, [10, 10, 50, 50]) | change).items() if v is not ...}
    good = annotation(8, 9, 18, [200, 10, 50, 50])
    content = {"images": [coco_image(9)], "annotations": [broken, good], "categories": [{"id": 18, "name": "dog"}]}
    write_json(tmp_path / "instances_train2017.json", content)
    with pytest.raises(ValueError, match=f"instances_train2017.json: {message}.*--skip-bad"):
        read("coco", tmp_path)
    (scene,), problems = read("coco", tmp_path, skip_bad=1)
    assert len(problems) == 1
    assert [each.box.x1 for each in scene.objects] == [200]
    if case not in ("category", "image"):
        assert scene.all_of("dog") is None  # the broken one is in the picture too


def test_a_file_that_is_missing_or_no_json_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"has no instances_train2017.json; docs/building.md"):
        read("coco", tmp_path)
    (tmp_path / "instances_train2017.json").write_text('{"images": [\n  1,\n  oops]}')
    with pytest.raises(ValueError, match=r"instances_train2017.json: not JSON: .*line 3"):
        read("coco", tmp_path)
    write_json(tmp_path / "instances_train2017.json", [1])
    with pytest.raises(ValueError, match="must be an object with images and annotations"):
        read("coco", tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "Annotations" / "1000092795.xml").write_text("<annotation>"), r"1000092795.xml: not XML"),
        (lambda root: (root / "Annotations" / "1000092795.xml").unlink(), r"1000092795.xml: no such file"),
        (
            lambda root: (root / "Sentences" / "1000092795.txt").write_text("ok\n[/EN#1/people Two\n"),
            r"1000092795.txt: line 2: ",
        ),
        (lambda root: (root / "Sentences" / "1000092795.txt").write_text("<image> is here\n"), r"line 1: text holds a token"),
    ],
)
def test_flickr30k_errors_name_file_and_line(tmp_path, damage, message):
    damage(make_flickr30k(tmp_path))
    with pytest.raises(ValueError, match=message):
        read("flickr30k", tmp_path)


def test_llava_dialogue_out_of_turn(tmp_path):
    make_llava(tmp_path)
    path = tmp_path / "llava_instruct_150k.json"
    value = json.loads(path.read_text())
    value[0]["conversations"].pop()
    write_json(path, value)
    with pytest.raises(ValueError, match="item 000000000009: conversations: must alternate between human and gpt, got human"):
        read("llava", tmp_path)


def test_doubles_are_merged_in_everything_that_mentions_them():
    box = Box(10, 10, 100, 100)
    objects = (
        SceneObject(box=box, name="dog"),
        SceneObject(box=Box(10, 10, 100, 101), name="dog"),
        SceneObject(box=box, name="cat"),
    )
    scene = Scene(
        id="1", image="1.jpg", size=ImageSize(640, 480), objects=objects, captions=("Dogs [box0] [box1], a cat [box2].",)
    )
    merged = merge_doubles(scene)
    assert [each.name for each in merged.objects] == ["dog", "cat"]
    assert merged.captions == ("Dogs [box0], a cat [box1].",)


def test_rle_segmentations_are_taken_as_they_are():
    size, pixels = ImageSize(8, 6), np.zeros((6, 8), dtype=bool)
    pixels[1:3, 2:5] = True
    runs = {"size": [6, 8], "counts": [13, 2, 4, 2, 4, 2, 21]}  # uncompressed, down the columns
    assert (to_region(SceneObject(box=Box(2, 1, 5, 3), segmentation=runs), size).mask.to_mask(size) == pixels).all()
