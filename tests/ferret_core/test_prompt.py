"""The conversation format, byte for byte."""

import json

import pytest

from ferret_core.geometry import Box, ImageSize, Point
from ferret_core.prompt import SYSTEM, PromptError, Turn, build_prompt, number_regions, write_boxes

SIZE = ImageSize(1000, 1000)


def test_template_matches_the_recordings(golden):
    for name in ("v1", "ferret_v1"):
        template = json.loads((golden / "conversation_templates.json").read_text())[name]
        assert template["system"] == SYSTEM
        assert build_prompt([Turn("Q1")], {}, None)[0] == template["one_open"]
        assert build_prompt([Turn("Q1", "A1")], {}, None)[0] == template["one_closed"]
        assert build_prompt([Turn("Q1", "A1"), Turn("Q2")], {}, None)[0] == template["two_open"]


def test_region_substitution_matches_the_recordings(golden):
    """Where the original leaves an unknown [region10] as text, ours is an error."""
    web = json.loads((golden / "prompts" / "prompts.json").read_text())["web_format_region_prompt"]
    regions = [Point(1, 2), Box(3, 4, 5, 6), Box(7, 8, 9, 10)]
    names = dict(zip(web["state"]["region_masks"], regions, strict=True))
    for row in web["rows"]:
        if "USER" in row["prompt"]:
            continue
        if "[region10]" in row["prompt"]:
            with pytest.raises(PromptError, match=r"\[region10\] is not among the regions; known: \[region0\], "):
                build_prompt([Turn(row["prompt"])], number_regions(regions), SIZE)
            continue
        prompt, mentioned = build_prompt([Turn(row["prompt"])], number_regions(regions), SIZE)
        assert prompt == f"{SYSTEM} USER: <image>\n{row['out']} ASSISTANT:"
        assert mentioned == [names[name] for name in row["masks_in_prompt"]]


def test_regions_of_the_history_come_first():
    turns = [Turn("What is [region1]?", "A dog."), Turn("And [region0]?")]
    prompt, mentioned = build_prompt(turns, {0: Point(10, 20), 1: Box(1, 2, 3, 4)}, SIZE)
    assert "USER: <image>\nWhat is [1, 2, 3, 4] <region_fea>? ASSISTANT: A dog.</s>USER: And [10, 20] <region_fea>?" in prompt
    assert mentioned == [Box(1, 2, 3, 4), Point(10, 20)]


@pytest.mark.parametrize(
    ("turns", "says"),
    [
        ([Turn("   ")], "question: must not be empty"),
        ([Turn("a <region_fea> b")], "'<region_fea>' is reserved"),
        ([Turn("a </s> b")], "'</s>' is reserved"),
        ([Turn("<image> b")], "'<image>' is reserved"),
        ([Turn("a", "b </s>"), Turn("c")], r"history\[0\].answer: '</s>' is reserved"),
        ([Turn("a"), Turn("b")], r"history\[0\].answer: every turn but the last needs one"),
        ([Turn("a", "It is [region3]."), Turn("b")], r"history\[0\].answer: \[region3\] is not among"),
        ([Turn("What is [region7]?")], r"\[region7\] is not among the regions; known: none"),
    ],
)
def test_bad_questions_say_what_is_wrong(turns, says):
    with pytest.raises(PromptError, match=says):
        build_prompt(turns, {}, SIZE)


def test_write_boxes():
    text = write_boxes("A dog [box0] and a cat [box1].", [Box(0, 0, 320, 240), Box(64, 48, 640, 480)], ImageSize(640, 480))
    assert text == "A dog [0, 0, 500, 500] and a cat [100, 100, 1000, 1000]."
