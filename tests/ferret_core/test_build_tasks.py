"""What is asked about a scene, and that every no is one."""

import re
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferret_core.data.build import words
from ferret_core.data.build.negatives import NEGATIVES, BuiltInFoils, side
from ferret_core.data.build.reading import Request
from ferret_core.data.build.scene import Description, Relation, Scene, SceneObject, without_mentions
from ferret_core.data.build.sources import SOURCES
from ferret_core.data.build.tasks import TASKS
from ferret_core.data.build.templates import TEMPLATES
from ferret_core.geometry import Box, ImageSize
from ferret_core.prompt import mentioned_boxes, mentioned_regions
from tests.downloads import make_coco, make_lvis, make_visual_genome

SIZE = ImageSize(640, 480)


def item(name, x, y, *attributes, side=60):
    return SceneObject(box=Box(x, y, x + side, y + side), name=name, attributes=attributes)


def scene_of(*objects, **more):
    return Scene(id="1", image="1.jpg", size=SIZE, objects=objects, **more)


def exchanges(task, scene, seed=0):
    if task in TASKS:
        return list(TASKS[task](scene, Random(seed)))
    return list(NEGATIVES[task](scene, Random(seed), BuiltInFoils()))


DOGS = scene_of(
    item("dog", 300, 100, "black"), item("dog", 10, 100), item("cat", 400, 400, "white", "red"),
    item("frisbee", 600, 0, side=4),
    checked=("dog", "cat", "frisbee", "hot dog", "duck", "horse"),
)  # fmt: skip


def test_naming_points_at_what_is_large_enough():
    turns = [turn for (turn,) in exchanges("name", DOGS)]
    assert sorted(mentioned_regions(" ".join(turn.question for turn in turns))) == [0, 1, 2]
    for turn in turns:
        (i,) = mentioned_regions(turn.question)
        assert words.indefinite(DOGS.objects[i].name) in turn.answer.lower()


def test_only_what_is_unambiguous_is_located():
    located = {tuple(mentioned_boxes(turn.answer)) for (turn,) in exchanges("locate", DOGS)}
    assert located == {(2,)}  # two dogs; the frisbee is too small
    people = scene_of(item("man", 0, 0), item("player", 100, 0), item("tree", 200, 0))
    assert {tuple(mentioned_boxes(turn.answer)) for (turn,) in exchanges("locate", people)} == {(2,)}


def test_all_of_a_kind_are_found_from_left_to_right_and_only_if_all_are_known():
    found = {tuple(mentioned_boxes(turn.answer)): turn for (turn,) in exchanges("find", DOGS)}
    assert set(found) == {(1, 0), (2,), (3,)}
    assert "two dogs" in found[1, 0].answer.lower()
    assert "one cat" in found[2,].answer.lower()
    crowd = scene_of(item("person", 0, 0), checked=("person",), partial=frozenset({"person"}))
    assert exchanges("find", crowd) == exchanges("count", crowd) == []


def test_relations_name_both_objects_with_their_boxes():
    scene = scene_of(item("trees", 0, 0), item("house", 200, 0), relations=(Relation(0, "behind", 1),))
    ((turn,),) = exchanges("relate", scene)
    assert mentioned_regions(turn.question) == [0, 1]
    assert turn.answer == "The trees [box0] are behind the house [box1]."


@pytest.mark.parametrize(("task", "expected"), [("caption", "A dog [box0] barks."), ("ground", "A dog [box0] barks.")])
def test_captions(task, expected):
    scene = scene_of(item("dog", 0, 0), captions=(expected,))
    ((turn,),) = exchanges(task, scene)
    assert turn.answer == expected
    assert not mentioned_boxes(turn.question)
    assert (without_mentions(expected) in turn.question) == (task == "ground")


def test_a_caption_without_boxes_is_asked_for_without_boxes():
    ((turn,),) = exchanges("caption", scene_of(captions=("A dog barks.",)))
    assert turn.question in TEMPLATES["plain_caption"].questions


@pytest.mark.parametrize("task", NEGATIVES)
@pytest.mark.parametrize("make", [make_coco, make_lvis, make_visual_genome])
def test_no_and_yes_are_equally_many(tmp_path, make, task):
    source = {make_coco: "coco", make_lvis: "lvis", make_visual_genome: "visual-genome"}[make]
    for scene in SOURCES[source].read(Request(make(tmp_path))):
        for no, yes in exchanges(task, scene):
            assert no.answer.startswith("No")
            assert yes.answer.startswith("Yes")


@pytest.mark.parametrize("seed", range(20))
def test_what_is_said_to_be_absent_is_absent(tmp_path, seed):
    """Of LVIS, only classes it was searched for, and none that something in the picture could be called."""
    for scene in SOURCES["lvis"].read(Request(make_lvis(tmp_path))):
        for no, _ in exchanges("presence", scene, seed):
            assert " cat" in no.question
    for no, yes in exchanges("presence", DOGS, seed):
        assert re.search(r"\b(duck|horse)\b", no.question)
        assert not mentioned_boxes(no.answer)
        assert {"dog", "dogs", "cat"} & {*re.findall(r"\w+", yes.question)}


def test_nothing_is_absent_where_nobody_looked(tmp_path):
    for scene in SOURCES["visual-genome"].read(Request(make_visual_genome(tmp_path))):
        assert exchanges("presence", scene) == []
        assert exchanges("count", scene) == []


@pytest.mark.parametrize("seed", range(20))
def test_counts_are_denied_where_they_are_wrong(seed):
    for no, yes in exchanges("count", DOGS, seed):
        (false,) = re.findall(rf"\b({'|'.join(words.NUMBERS)})\b", no.question)
        (true,) = re.findall(rf"\b({'|'.join(words.NUMBERS)})\b", yes.question)
        assert false != true
        assert true in no.answer
        assert words.NUMBERS.index(true) == len(mentioned_boxes(no.answer)) == len(mentioned_boxes(yes.answer))


@pytest.mark.parametrize("seed", range(20))
def test_lookalikes_and_colours_are_denied_of_the_object_they_are_not(seed):
    for no, yes in exchanges("verify", DOGS, seed):
        (i,) = mentioned_regions(no.question)
        assert mentioned_regions(yes.question) == [i]
        assert DOGS.objects[i].name in yes.question
        assert DOGS.objects[i].name not in no.question.replace("object", "")
    ((no, yes),) = exchanges("attribute", DOGS, seed)  # the cat has two colours, the second dog none known
    assert "a black dog" in yes.question
    assert "black" not in no.question
    assert " dog" in no.question


@pytest.mark.parametrize("seed", range(20))
def test_relations_are_denied_by_their_opposite(seed):
    for no, _ in exchanges("relation", DOGS, seed):
        i, j = mentioned_regions(no.question)
        a, b = DOGS.objects[i].box, DOGS.objects[j].box
        asked = next(
            p
            for p in ("to the left of", "to the right of", "above", "below")
            if f"] is {p}" in no.question or f"] {p}" in no.question
        )
        true = {"to the left of": a.x2 <= b.x1, "to the right of": a.x1 >= b.x2, "above": a.y2 <= b.y1, "below": a.y1 >= b.y2}
        assert not true[asked]
        assert true[words.OPPOSITES[asked]]
        assert words.OPPOSITES[asked] in no.answer


def test_a_relation_stated_both_ways_is_not_denied():
    both = (Relation(0, "behind", 1), Relation(0, "in front of", 1))
    assert exchanges("relation", scene_of(item("dog", 0, 0), item("cat", 20, 20), relations=both)) == []


coordinate = st.floats(0, 100)


@given(st.tuples(coordinate, coordinate, coordinate, coordinate), st.tuples(coordinate, coordinate, coordinate, coordinate))
def test_sides_are_opposite_seen_from_either(a, b):
    a, b = (Box(min(x1, x2), min(y1, y2), max(x1, x2) + 1, max(y1, y2) + 1) for x1, y1, x2, y2 in (a, b))
    place = side(a, b)
    assert side(b, a) == (words.OPPOSITES[place] if place else None)


def test_what_somebody_else_said_of_the_same_object_is_no_foil():
    said = ("a dog", "a cat", "a fox", "a rabbit")
    scene = scene_of(item("", 0, 0), descriptions=tuple(Description(text, 0) for text in said))
    assert exchanges("phrase", scene) == []
    scene = scene_of(item("", 0, 0), descriptions=(Description("a dog", 0),))
    ((no, yes),) = exchanges("phrase", scene)
    assert '"a dog"' in no.answer
    assert '"a dog"' not in no.question
    assert '"a dog"' in yes.question


@pytest.mark.parametrize(
    ("phrase", "foils"),
    [
        ("a dog in the snow", {"a cat in the snow", "a fox in the snow", "a rabbit in the snow"}),
        ("an orange", set()),  # a fruit or a colour?
        ("A red shirt", {"A green shirt", "A blue shirt", "A white shirt", "A black shirt", "A red dress"}),
        ("a red and white flag", set()),
        ("the man and his son", set()),
        ("a dog and another dog", set()),
        ("the black and white cat", {"the black and white dog", "the black and white fox", "the black and white rabbit"}),
        ("", set()),
    ],
)
def test_foils_of_phrases(phrase, foils):
    assert set(words.word_foils(phrase)) == foils


def test_the_word_lists_hold_together():
    """No foil could be true of the thing itself."""
    for group in words.LOOKALIKES:
        for name in group:
            assert words.lookalikes(name), name
            assert not any(words.may_be(name, other) for other in words.lookalikes(name))
    for color, others in words.COLORS.items():
        assert color not in others
        assert set(others) <= words.COLORS.keys()
    for predicate, opposite in words.OPPOSITES.items():
        assert opposite in words.OPPOSITES
        assert opposite != predicate


@pytest.mark.parametrize(
    ("there", "other", "answer"),
    [
        ("dog", "cat", False), ("duck", "bird", True), ("bird", "duck", True), ("sofa", "couch", True),
        ("coffee table", "table", True), ("wild bird", "duck", True), ("dining table", "desk", True),
        ("hot dog", "dog", True), ("man", "person", True), ("man", "woman", False), ("people", "person", True),
        ("cups", "mug", True), ("horse", "car", False),
    ],
)  # fmt: skip
def test_what_may_be_called_what(there, other, answer):
    assert words.may_be(there, other) == words.may_be(other, there) == answer


def test_english():
    articles = ("a dog", "an apple", "an umbrella", "a uniform", "trees", "water", "a bus", "people", "an orange shirt")
    for words_with_article in articles:
        assert words.indefinite(re.sub("^an? ", "", words_with_article)) == words_with_article
    names = ("dog", "bus", "person", "knife", "butterfly", "hot dog", "fireman", "sheep", "box", "toothbrush", "coffee table")
    plurals = [
        "dogs",
        "buses",
        "people",
        "knives",
        "butterflies",
        "hot dogs",
        "firemen",
        "sheep",
        "boxes",
        "toothbrushes",
        "coffee tables",
    ]
    assert [words.plural(n) for n in names] == plurals
    assert [words.singular(n) for n in plurals if n != "firemen"] == [n for n in names if n != "fireman"]
    assert words.counted(1, "dog") == "one dog"
    assert words.counted(13, "dog") == "13 dogs"


def test_templates_are_many_different_and_complete():
    for kind, (questions, answers) in TEMPLATES.items():
        assert len(set(questions)) == len(questions)
        assert len(set(answers)) == len(answers)
        if questions and not kind.startswith(("plain", "relation", "presence")):
            assert len(questions) >= 4
