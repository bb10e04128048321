"""Boxes and their phrases, out of text that arrives in pieces."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferret_core.geometry import Box, ImageSize
from ferret_core.grounding import GroundingParser, find_spans, without_unfinished_box

SIZE = ImageSize(1000, 1000)

fragments = st.sampled_from(
    ["A dog", " and the cat", " [1, 2, 30, 40]", "[5, 5, 5, 5]", " is at", ".", ", ", "[1, 2, 3]", " [9, 9, 1, 1]", "\n", " ["]
)
texts = st.lists(fragments | st.text(max_size=6), max_size=12).map("".join)


@given(texts, st.data())
def test_pieces_do_not_matter(text, data):
    """However the text is cut, the spans are those of the whole, and each comes with the piece that closes its box."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    parser, spans = GroundingParser(SIZE), []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        found = parser.feed(text[start:end])
        assert all(start < span.box_end <= end for span in found)
        spans += found
    assert spans == find_spans(text, SIZE)


@given(texts)
def test_spans_point_into_the_text(text):
    for span in find_spans(text, SIZE):
        assert text[span.start : span.end] == span.phrase
        assert text[span.box_start] == "["
        assert text[span.box_end - 1] == "]"
        assert span.end <= span.box_start
        assert span.phrase == span.phrase.strip()
        assert 0 <= span.box.x1 <= span.box.x2 <= SIZE.width


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("A dog [1, 2, 3, 4] left of two cakes [5, 6, 7, 8] [9, 10, 11, 12].", ["A dog", "two cakes", "two cakes"]),
        ("The dogs are at [1, 2, 3, 4] and [5, 6, 7, 8].", ["The dogs", "The dogs"]),
        ("The dog left of the cake is located at [1, 2, 3, 4].", ["The dog left of the cake"]),
        ("Yes, there is bread [1, 2, 3, 4].", ["bread"]),
        ("It shows a truck [1, 2, 3, 4], a bat [5, 6, 7, 8] and two pandas [9, 9, 9, 9].", ["a truck", "a bat", "two pandas"]),
        ("The dog [1, 2, 3, 4] is right of the cake [5, 6, 7, 8].", ["The dog", "the cake"]),
        ("I see a man in a red hat [1, 2, 3, 4] holding his hot dog [5, 6, 7, 8].", ["a red hat", "his hot dog"]),
        ("[1, 2, 3, 4]", [""]),
        ("It is a fire truck [1, 2, 3, 4].", ["a fire truck"]),
    ],
)  # fmt: skip
def test_phrases(text, phrases):
    assert [span.phrase for span in find_spans(text, SIZE)] == phrases


def test_malformed_boxes_stay_text_and_large_ones_are_clamped():
    assert find_spans("a [1, 2, 3] b [1, 2, 3, 4, 5] c [1.5, 2, 3, 4] d [9, 9, 1, 1] e [1, 2, 3, 4", SIZE) == []
    (span,) = find_spans("a dog [500, 0, 9999, 1000]", ImageSize(640, 480))
    assert span.box == Box(320, 0, 640, 480)


def test_boxes_are_read_as_recorded(golden):
    """On the 4-number boxes of the original's own examples."""
    for text, _, boxes in json.loads((golden / "prompts" / "prompts.json").read_text())["find_bbox_template_refcoco"]:
        spans = find_spans(text, ImageSize(640, 480))
        assert [list(span.box.coordinates(SIZE)) for span in spans] == boxes


@pytest.mark.parametrize(
    ("text", "shown"),
    [("A dog", "A dog"), ("A dog [", "A dog"), ("A dog [12, 3", "A dog"), ("A dog [12, 3].", "A dog [12, 3]."), ("[a", "[a")],
)
def test_a_box_on_its_way_is_not_shown(text, shown):
    assert without_unfinished_box(text) == shown
