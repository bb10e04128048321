"""Benchmarks read the data sets as they are published, build the questions that they should, and grade as they say."""

import math
from collections import Counter

import pytest

from ferret_core.data.build.lvis import read_lvis
from ferret_core.data.build.reading import Request
from ferret_core.data.build.scene import Scene, SceneObject
from ferret_core.evaluation import captioning, flickr_entities, lvis_referring, pope, refexp
from ferret_core.evaluation.benchmark import Item, Prediction
from ferret_core.evaluation.benchmarks import BENCHMARKS
from ferret_core.evaluation.boxes_in_order import read_boxes
from ferret_core.evaluation.original_answers import match_by, read_rows
from ferret_core.evaluation.questions import read_questions, write_questions
from ferret_core.evaluation.scores import score
from ferret_core.geometry import Box, ImageSize, Mask, Point
from ferret_core.prompt import to_bins
from tests.downloads import make_coco, make_flickr30k, make_lvis, make_refcoco

SIZE = ImageSize(640, 480)


def text_of(boxes, size):
    return [f"{list(to_bins(Box(*box).coordinates(size), size))}" for box in boxes]


def figures(benchmark, predictions):
    return {(each.group, each.figure): each.value for each in score(benchmark, predictions).scores}


def test_questions_about_expressions_are_the_recorded_ones(golden):
    import json

    rows = json.loads((golden / "prompts" / "prompts.json").read_text())["refexp_questions"]
    assert rows
    for row in rows:
        assert refexp.question(row["caption"]) == row["question"]


def test_refcoco_as_published(tmp_path):
    items = list(refexp.read_refexp(make_refcoco(tmp_path), "refcoco", "testA"))
    assert items
    item = items[0]
    assert (item.group, item.size, item.image) == ("refcoco testA", SIZE, "train2014/COCO_train2014_000000581563.jpg")
    assert item.boxes == (Box(5, 5, 55, 55),)
    (right,) = text_of([[5, 5, 55, 55]], SIZE)
    found = figures(refexp.BENCHMARK, [Prediction(each, f"It is here {right}.") for each in items])
    assert found["refcoco testA", "Acc@0.5"] == found["refcoco testA", "Acc@0.5, strict"] == 1
    with pytest.raises(ValueError, match="no ref of split 'val'; --split"):
        list(refexp.read_refexp(tmp_path, "refcoco", "val"))
    with pytest.raises(ValueError, match="--dataset: must be one of"):
        refexp.read_refexp(tmp_path, "refclef")
    with pytest.raises(ValueError, match="--split: must be one of"):
        refexp.read_refexp(tmp_path, split="train")


@pytest.mark.parametrize(
    ("answer", "default", "strict"),
    [
        ("[100, 100, 300, 200]", 1, 1),
        ("A [100, 100, 300, 200]. B [1, 1, 9, 9].", 1, 0),
        ("A [1, 1, 9, 9]. B [100, 100, 300, 200].", 0, 0),
        ("[100, 100, 300, 200, 7]", 1, 0),
        ("x [300, 200, 100, 100]", 0, 0),
        ("[100, 100, 300, 200] and [here]", 0, 0),  # one bracket spoils all
        ("", 0, 0),
    ],
)
def test_referring_expressions(answer, default, strict):
    item = Item(id="1", image="", size=ImageSize(1000, 1000), question="?", expected={"boxes": [[100, 100, 300, 200]]})
    tally = refexp.grade(Prediction(item, answer))
    assert (tally.get("first", 0), tally["strict"]) == (default, strict)


def test_flickr30k_as_published(tmp_path):
    items = list(flickr_entities.read_flickr(make_flickr30k(tmp_path), "test"))
    assert [item.id for item in items] == ["1007129816-0", "1007129816-1"]
    two, one = items
    assert two.question == "What are the locations of Two young guys, shaggy hair?"
    guys, hair = two.expected["phrases"]
    assert (guys["types"], guys["boxes"]) == (["people"], [[9, 19, 109, 299], [149, 19, 249, 309]])
    assert one.expected["phrases"][0]["phrase"] == "a man"

    around, hair_box = text_of([[9, 19, 249, 309], hair["boxes"][0]], two.size)
    left = text_of(guys["boxes"][:1], two.size)[0]
    found = figures(flickr_entities.BENCHMARK, [Prediction(two, f"Two young guys {left}. shaggy hair {hair_box}.")])
    assert found["test", "R@1, merged, people"] == 0
    assert found["test", "R@1, any, people"] == 1
    assert found["test", "R@1, merged, all"] == 0.5
    assert found["test", "R@10, merged, strict, bodyparts"] == 1

    swapped = [Prediction(two, f"shaggy hair {hair_box}. Two young guys {around}.")]
    found = figures(flickr_entities.BENCHMARK, swapped)
    assert found["test", "R@1, merged, all"] == 0  # by order, whatever the answer says
    assert found["test", "R@1, merged, strict, all"] == 1
    counts = (
        score(flickr_entities.BENCHMARK, [Prediction(two, "Two young guys ["), Prediction(one, "a man ].")]).groups[0].counts
    )
    assert counts == {"all phrases": 4, "malformed": 1, "fewer boxes than phrases": 2}
    with pytest.raises(ValueError, match="--split"):
        list(flickr_entities.read_flickr(tmp_path, "testA"))


def captioned(objects, captions=("a dog sits by two red cars",)):
    return Item(
        id="1",
        image="1.jpg",
        size=ImageSize(1000, 1000),
        question="?",
        expected={"captions": list(captions), "objects": objects},
    )


def test_captions_as_published(tmp_path):
    (item,) = captioning.read_captioning(make_flickr30k(tmp_path), "test")
    assert item.expected["captions"][0].startswith("Two young guys with shaggy hair stand in the yard")
    assert len(item.expected["captions"]) == 2
    assert ["shaggy hair", [39, 19, 79, 59]] in item.expected["objects"]
    assert len(item.boxes) == len(set(item.boxes))
    root = tmp_path / "again"
    sentences = make_flickr30k(root) / "Sentences" / "1007129816.txt"
    sentences.write_text("Nobody is here .\n" + sentences.read_text())
    (with_three,) = captioning.read_captioning(root, "test")
    assert with_three.expected["captions"] == ["Nobody is here .", *item.expected["captions"]]
    assert with_three.expected["objects"] == item.expected["objects"]


def test_flickr30k_boxes_are_scored_as_they_stick_out(tmp_path):
    root = make_flickr30k(tmp_path)
    (annotation,) = root.glob("Annotations/1007129816.xml")
    annotation.write_text(annotation.read_text().replace("<xmax>80</xmax>", "<xmax>9000</xmax>"))
    two, _ = flickr_entities.read_flickr(root, "test")
    assert two.expected["phrases"][1]["boxes"] == [[39, 19, 8999, 59]]
    (root / "Sentences" / "1007129816.txt").unlink()
    with pytest.raises(ValueError, match=r"1007129816\.txt: no such file"):
        list(flickr_entities.read_flickr(root, "test"))


def test_bleu_is_that_of_its_definition():
    right = captioned([], ["the cat is on the mat", "there is a cat on the mat"])
    perfect = figures(captioning.BENCHMARK, [Prediction(right, "The cat [1, 2, 3, 4] is on the mat [5, 6, 7, 8].")])
    assert perfect["", "BLEU@4"] == pytest.approx(1)
    # 4 of 4 words, 3 of 3, 2 of 2 and 1 of 1 n-grams; 4 words instead of 6
    short = figures(captioning.BENCHMARK, [Prediction(right, "on the mat")])["", "BLEU@4"]
    assert short == 0  # no n-gram of four
    short = figures(captioning.BENCHMARK, [Prediction(right, "is on the mat")])["", "BLEU@4"]
    assert short == pytest.approx(math.exp(1 - 6 / 4))
    again = figures(captioning.BENCHMARK, [Prediction(right, "the cat is on the the")])["", "BLEU@4"]
    assert again == pytest.approx((5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25)  # "the" is there twice, not three times


def test_objects_of_captions():
    dog, car, other = [0, 0, 100, 100], [200, 200, 400, 400], [500, 500, 700, 700]
    item = captioned([["a dog", dog], ["two red cars", car], ["two red cars", other]])
    found = figures(captioning.BENCHMARK, [Prediction(item, "A dog [0, 0, 100, 100] and a car [200, 200, 400, 400].")])
    assert found["", "F1_all"] == pytest.approx((1 + 2 * 1 / 3) / 2)  # of dogs 1, of cars one of two
    found = figures(captioning.BENCHMARK, [Prediction(item, "Cars [0, 0, 9, 9] and a cat [200, 200, 400, 400].")])
    assert found["", "F1_all"] == found["", "F1_loc"] == 0
    found = figures(captioning.BENCHMARK, [Prediction(item, "A dog [0, 0, 100, 100] and a cat [200, 200, 400, 400].")])
    assert (found["", "F1_all"], found["", "F1_loc"]) == (0.5, 1)
    twice = figures(captioning.BENCHMARK, [Prediction(item, "A dog [0, 0, 100, 100], a dog [0, 0, 100, 100].")])
    assert twice["", "F1_loc"] == pytest.approx(2 / 3)  # the same dog


def scenes(count=12):
    """Cats are with dogs, and now and then with birds; bowls are in most pictures, spoons in one."""
    square = [[10, 10, 60, 10, 60, 60, 10, 60]]
    made = []
    for i in range(count):
        names = ["cat", "dog", "bowl"] if i % 3 == 0 else ["cat", "bird", "bowl"] if i % 3 == 1 else ["bowl", "horse", "bird"]
        objects = tuple(SceneObject(box=Box(10, 10, 60, 60), name=name, segmentation=square) for name in names)
        checked = ("cat", "dog", "bird", "bowl", "horse", "spoon", "kite", "car")
        made.append(Scene(id=str(i), image=f"{i}.jpg", size=SIZE, objects=objects, checked=checked))
    return made


@pytest.mark.parametrize("sampling", pope.SAMPLINGS)
def test_pope_is_built_as_it_was(sampling):
    items = list(pope.build_pope(scenes(), sampling, images=8, seed=3))
    assert len(items) == len({item.id for item in items}) == 8 * 6
    assert [item.expected["label"] for item in items] == ["yes", "no"] * 24
    there = {scene.image: set(scene.by_name) for scene in scenes()}
    for item in items:
        assert (item.expected["object"] in there[item.image]) == (item.expected["label"] == "yes")
    by_image = Counter((item.image, item.expected["object"]) for item in items)
    assert set(by_image.values()) == {1}  # nothing is asked twice
    assert items == list(pope.build_pope(scenes(), sampling, images=8, seed=3))
    assert items != list(pope.build_pope(scenes(), sampling, images=8, seed=4))


def test_pope_asks_for_what_is_popular_and_for_what_is_often_together():
    popular = list(pope.build_pope(scenes(), "popular", images=12))
    for first in popular[1::6]:  # the first thing of each picture that is not there
        names = set(scenes()[int(first.image[:-4])].by_name)
        frequency = Counter(name for scene in scenes() for name in scene.by_name)
        most = max(count for name, count in frequency.items() if name not in names)
        assert frequency[first.expected["object"]] == most
    adversarial = list(pope.build_pope(scenes(), "adversarial", images=12))
    for yes, no in zip(adversarial[::6], adversarial[1::6], strict=True):
        if yes.expected["object"] == "dog":  # dogs are seen with cats and bowls only, which are there
            assert no.expected["object"] not in ("cat", "bowl", "dog")
        if yes.expected["object"] == "horse":  # with bowls and birds
            assert no.expected["object"] not in ("bowl", "bird", "horse")
        if yes.expected["object"] == "cat" and int(yes.image[:-4]) % 3 == 0:
            assert no.expected["object"] == "bird"
    with pytest.raises(ValueError, match="only 12 pictures have 3 classes"):
        list(pope.build_pope(scenes(), "random", images=13))
    with pytest.raises(ValueError, match="--sampling"):
        list(pope.build_pope(scenes(), "hard", images=1))


def test_pope_from_coco(tmp_path):
    make_coco(tmp_path)
    for path in tmp_path.rglob("instances_train2017.json"):
        path.rename(path.with_name("instances_val2014.json"))
    items = list(pope.build_pope(pope.read_scenes(tmp_path), "random", images=5, per_image=2))
    assert {item.expected["label"] for item in items} == {"yes", "no"}
    assert all(item.question.startswith("Is there a ") for item in items)


@pytest.mark.parametrize(
    ("answer", "yes", "strict"),
    [
        ("Yes, it is.", 1, "yes"),
        ("There is no dog.", 0, ""),
        ("No.", 0, "no"),
        ("no\nyes", 1, "no"),
        ("", 1, ""),
        ("Not at all", 1, ""),
    ],
)
def test_yes_and_no(answer, yes, strict):
    for label in ("yes", "no"):
        item = Item(id="1", image="", question="?", expected={"label": label})
        tally = pope.grade(Prediction(item, answer))
        assert tally["yes"] == yes
        assert tally["right"] == (yes == (label == "yes"))
        assert tally["strict"] == (strict == label)
        assert pope.grade(Prediction(item, None))["right"] == 0


def test_lvis_questions():
    items = list(lvis_referring.build_lvis(scenes(), objects=10, seed=1))
    assert len(items) == 30
    for first in range(0, 30, 3):
        point, box, form = items[first : first + 3]
        assert [each.group for each in (point, box, form)] == list(lvis_referring.FORMS)
        assert point.question == box.question == form.question
        inside = Mask.from_coco({"size": [480, 640], "counts": form.regions[0].counts}).to_mask(SIZE)
        assert isinstance(point.regions[0], Point)
        assert 10 <= point.regions[0].x <= 61
        assert box.regions == (Box(10, 10, 60, 60),)
        assert 0 < inside.sum() < 51 * 51
        assert not inside[:10].any()
        right, wrong = point.expected["right"], point.expected["wrong"]
        assert wrong not in scenes()[int(point.image[:-4])].by_name
        in_order = point.question.index(f" {right}") < point.question.index(f" {wrong}")
        assert in_order == (first % 2 == 0)  # in turn
    assert {item.expected["right"] for item in items} == {"bird", "bowl", "cat", "dog", "horse"}  # rare ones, too
    assert items == list(lvis_referring.build_lvis(scenes(), objects=10, seed=1))
    with pytest.raises(ValueError, match="only 36 objects"):
        list(lvis_referring.build_lvis(scenes(), objects=37))


def test_lvis_as_published(tmp_path):
    request = Request(make_lvis(tmp_path), "train")
    items = list(lvis_referring.build_lvis(read_lvis(request), objects=3))
    assert {(item.expected["right"], item.expected["wrong"]) for item in items} == {
        ("cup", "cat"),
        ("spoon", "cat"),
        ("bow", "cat"),
    }


@pytest.mark.parametrize(
    ("answer", "right", "strict"),
    [
        ("It is a cat.", 1, 1),
        ("A caterpillar.", 1, 0),
        ("a cat, not a dog", 1, 0),
        ("A dog.", 0, 0),
        ("CAT", 1, 1),
        (None, 0, 0),
    ],
)
def test_which_of_two_classes(answer, right, strict):
    item = Item(id="1", image="", question="?", expected={"right": "cat", "wrong": "dog"})
    tally = lvis_referring.grade(Prediction(item, answer))
    assert (tally["right"], tally["strict"]) == (right, strict)


def test_questions_are_kept_and_asked_again(tmp_path):
    items = list(lvis_referring.build_lvis(scenes(), objects=4))
    write_questions(tmp_path / "questions.jsonl", items)
    assert list(read_questions(tmp_path / "questions.jsonl")) == items
    (tmp_path / "questions.jsonl").write_text('{"image": "1"}\n')
    with pytest.raises(ValueError, match="line 1: not a question: KeyError"):
        list(read_questions(tmp_path / "questions.jsonl"))


def test_answers_of_the_original_are_matched(tmp_path):
    items = [Item(id=str(i), image="", question="?") for i in range(3)]
    with pytest.raises(ValueError, match=r"has no 0_of_1\.jsonl"):
        read_rows(tmp_path)
    (tmp_path / "1_of_2.jsonl").write_text('{"image_id": 0, "text": "a"}\n')
    with pytest.raises(ValueError, match="every part of one run"):
        read_rows(tmp_path)
    (tmp_path / "0_of_2.jsonl").write_text('{"image_id": 2, "text": "c"}\n\n')
    (tmp_path / "metric.json").write_text("not\nof us")  # on which the original's second run stops
    rows = read_rows(tmp_path)
    assert [p.answer for p in match_by("image_id", answer="text")(items, rows)] == ["a", None, "c"]
    by_order = match_by("image_id", "sentence_id", answer="text")
    assert [p.answer for p in by_order(items[:2], rows)] == ["c", "a"]
    assert [p.answer for p in by_order(items, [*rows, {"text": ["no text"]}])] == ["c", "a", None]
    with pytest.raises(ValueError, match="2 answers to 3 questions: without image_id and sentence_id"):
        by_order(items, rows)
    with pytest.raises(ValueError, match="1 answers, as '2', are to none of the 2 questions"):
        match_by("image_id", answer="text")(items[:2], rows)
    with pytest.raises(ValueError, match="no field 'answer'"):
        match_by("image_id", answer="answer")(items, rows)


def test_no_answer_breaks_a_benchmark():
    expected = {"boxes": [[1, 2, 3, 4]], "label": "yes", "right": "a", "wrong": "b", "name": "a", "answer": "a"}
    expected |= {"captions": ["a dog"], "objects": [["a dog", [1, 2, 3, 4]]], "kind": "describe", "others": ["b"], "choice": 0}
    expected["phrases"] = [{"phrase": "a dog", "types": ["animals"], "boxes": [[1, 2, 3, 4]]}]
    item = Item(id="1", image="", size=SIZE, question="?", regions=(Box(1, 2, 3, 4),), expected=expected)
    for benchmark in BENCHMARKS.values():
        for answer in (
            None,
            "",
            "]",
            "[",
            "[[",
            "[1, 2]",
            "[1, 2, 3, 4",
            "[9, 9, 1, 1]",
            "[-5, 1, 5, 99999999]",
            "é\0\n",
            f"[{'9' * 400}, 1, 2, 3]",
        ):
            assert benchmark.grade(Prediction(item, answer))
    assert read_boxes("no boxes", SIZE) == []
