import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferret_core.geometry import Box, ImageSize, Mask, Point, Polygon, Scribble
from ui.regions import regions_from_json, regions_to_json

SIZE = ImageSize(200, 100)
REGIONS = {
    0: Point(10, 20),
    2: Box(1, 2, 30, 40),
    3: Polygon(((0, 0), (20, 0), (20, 20))),
    7: Scribble(((5, 5), (50.5, 60)), 12.5),
}


def test_there_and_back():
    assert regions_from_json(regions_to_json(REGIONS), SIZE, limit=8) == REGIONS


def test_masks_cannot_be_drawn():
    assert regions_to_json({0: Mask(SIZE, "0")}) == []


def test_what_is_outside_is_clamped():
    items = [
        {"number": 0, "kind": "box", "points": [[150, 90], [-5, 1e9]]},
        {"number": 1, "kind": "scribble", "points": [[1, 1]], "width": 1e9},
        {"number": 2, "kind": "box", "points": [[200, 10], [200, 20]]},  # would cover nothing
    ]
    assert regions_from_json(items, SIZE, 8) == {0: Box(0, 90, 150, 100), 1: Scribble(((1, 1),), 200), 2: Box(199, 10, 200, 20)}


@pytest.mark.parametrize(
    "item",
    [
        None,
        "box",
        {},
        {"number": 0, "kind": "circle", "points": [[1, 1]]},
        {"number": -1, "kind": "point", "points": [[1, 1]]},
        {"number": float("inf"), "kind": "point", "points": [[1, 1]]},
        {"number": "x", "kind": "point", "points": [[1, 1]]},
        {"number": 0, "kind": "point", "points": []},
        {"number": 0, "kind": "point", "points": [[1, 1, 1]]},
        {"number": 0, "kind": "point", "points": [[math.nan, 1]]},
        {"number": 0, "kind": "box", "points": [[1, 1]]},
        {"number": 0, "kind": "polygon", "points": [[1, 1], [2, 2]]},
        {"number": 0, "kind": "scribble", "points": [[1, 1]], "width": "wide"},
        {"number": 0, "kind": ["box"], "points": [[1, 1], [2, 2]]},
    ],
)
def test_what_is_no_region_is_left_out(item):
    good = {"number": 5, "kind": "point", "points": [[1, 1]]}
    assert regions_from_json([item, good], SIZE, 8) == {5: Point(1, 1)}


def test_no_list_and_too_many():
    assert regions_from_json({"number": 0}, SIZE, 8) == {}
    many = [{"number": i, "kind": "point", "points": [[1, 1]]} for i in range(100)]
    assert list(regions_from_json(many, SIZE, 8)) == list(range(8))


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["number", "kind", "points", "width"]), inner),
    max_leaves=20,
)


@given(json)
def test_the_browser_is_not_trusted(value):
    for region in regions_from_json(value, SIZE, 8).values():
        region.to_mask(SIZE)
