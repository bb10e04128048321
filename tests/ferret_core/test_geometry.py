"""Regions: what they cover, what they say, what they refuse."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferret_core.geometry import (
    Box,
    ImageSize,
    Mask,
    Point,
    Polygon,
    RegionError,
    Scribble,
    box_iou,
    from_bins,
    mask_bounds,
    mask_iou,
    rle_decode,
    rle_encode,
    to_bins,
)

sizes = st.builds(ImageSize, st.integers(12, 200), st.integers(12, 200))


@st.composite
def points_in_image(draw, minimum=1, maximum=8):
    size = draw(sizes)
    coordinate = st.tuples(st.floats(0, size.width), st.floats(0, size.height))
    return size, tuple(draw(st.lists(coordinate, min_size=minimum, max_size=maximum)))


def test_masks_match_the_recordings(golden):
    """The original's point windows and boxes, its crash cases apart."""
    table = json.loads((golden / "prompts" / "prompts.json").read_text())["generate_mask_for_feature"]
    checked = 0
    for row in table:
        size = ImageSize(row["w"], row["h"])
        region = Point(*row["coor"]) if len(row["coor"]) == 2 else Box(*row["coor"])
        if "error" in row or not (0 <= row["coor"][0] <= size.width):
            with pytest.raises(RegionError):
                region.to_mask(size)
            continue
        expected = rle_decode(row["rle_hw"]["counts"], size)
        assert np.array_equal(region.to_mask(size), expected), row
        assert list(mask_bounds(expected)) == row["bbox"]
        checked += 1
    assert checked >= 8


@given(sizes, st.integers(0, 2**32), st.floats(0, 1))
def test_rle_round_trip(size, seed, density):
    mask = np.random.default_rng(seed).random((size.height, size.width)) < density
    assert np.array_equal(rle_decode(rle_encode(mask), size), mask)


def test_rle_is_cocos():
    """Strings as COCO writes them, from the recordings of the original."""
    box = Box(10, 20, 30, 40).to_mask(ImageSize(64, 48))
    assert rle_encode(box) == "d?e0k0000000000000000000000000000000000000000l`1"
    assert rle_encode(np.ones((48, 64), bool)) == "0PP3"
    assert Mask.from_coco({"size": [2, 2], "counts": [1, 2, 1]}).to_mask(ImageSize(2, 2)).tolist() == [
        [False, True],
        [True, False],
    ]


@pytest.mark.parametrize("counts", ["", "~~~", "0", "PP3", "o"])
def test_damaged_rle_is_refused(counts):
    with pytest.raises(RegionError, match="mask"):
        Mask(ImageSize(64, 48), counts).to_mask(ImageSize(64, 48))


@given(points_in_image())
def test_point_covers_its_window(case):
    size, points = case
    x, y = points[0]
    mask = Point(x, y).to_mask(size)
    x1, y1, x2, y2 = mask_bounds(mask)
    assert mask.sum() == (x2 - x1 + 1) * (y2 - y1 + 1) <= 121
    assert x1 <= x <= x2 + 6
    assert y1 <= y <= y2 + 6


@given(points_in_image(minimum=1), st.floats(0.5, 12))
def test_scribble_covers_its_vertices(case, width):
    size, points = case
    mask = Scribble(points, width).to_mask(size)
    for x, y in points:
        column, row = min(round(x), size.width - 1), min(round(y), size.height - 1)
        window = mask[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        assert window.any()


@given(points_in_image(minimum=3))
def test_polygon_lies_within_its_vertices(case):
    size, points = case
    x1, y1, x2, y2 = Polygon(points).coordinates(size)
    xs, ys = zip(*points, strict=True)
    assert min(xs) - 1 <= x1 <= x2 <= max(xs) + 1
    assert min(ys) - 1 <= y1 <= y2 <= max(ys) + 1


def test_polygon_is_filled():
    mask = Polygon(((10, 10), (30, 10), (30, 20), (10, 20))).to_mask(ImageSize(64, 48))
    assert mask[15, 20]
    assert mask.sum() == 21 * 11


@given(sizes, st.integers(0, 1000), st.integers(0, 1000))
def test_bins_survive_a_round_trip_within_one_pixel(size, x, y):
    back = from_bins((x, y), size)
    again = to_bins(back, size)
    assert abs(again[0] - x) <= math.ceil(1000 / size.width)
    assert abs(again[1] - y) <= math.ceil(1000 / size.height)


def test_bins_truncate_as_recorded(golden):
    for box, width, height, expected in json.loads((golden / "prompts" / "prompts.json").read_text())["resize_bbox"]:
        assert list(from_bins(tuple(box), ImageSize(width, height))) == expected


@pytest.mark.parametrize(
    ("region", "says"),
    [
        (Point(65, 10), r"point: x = 65 is outside the image \(64 x 48\): must be in \[0, 64\]"),
        (Point(float("nan"), 10), "point: x = nan"),
        (Box(-1, 0, 5, 5), "box: x1 = -1"),
        (Box(30, 40, 10, 20), "x2 must not be smaller than x1"),
        (Box(64, 0, 64, 5), "covers no pixel"),
        (Polygon(((1, 1), (2, 2))), "at least 3 points"),
        (Polygon(((1, 1), (2, 2), (2, 99))), r"points\[2\].y = 99"),
        (Scribble(()), "at least 1 point"),
        (Scribble(((1, 1),), 0), r"width must be in \(0, 64\]"),
        (Scribble(((1, 1),), float("inf")), "width"),
        (Mask.from_array(np.ones((48, 63))), "its size 63 x 48 is not the image's, 64 x 48"),
        (Mask.from_array(np.zeros((48, 64))), "covers no pixel"),
    ],
)
def test_bad_regions_say_what_is_wrong(region, says):
    with pytest.raises(RegionError, match=says):
        region.to_mask(ImageSize(64, 48))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Point(None, 1), "point: x = None"),
        (lambda: Point(10**400, 1), "point: x = 1000"),
        (lambda: Polygon((1, 2, 3)), "polygon: points = "),
        (lambda: Mask((64,), ""), "mask: size = "),
        (lambda: Mask((64, 48), None), "mask: counts must be text"),
        (lambda: Mask.from_coco({"size": ["a", 64], "counts": ""}), "mask: size = "),
        (lambda: Mask.from_coco({"size": [48, 64], "counts": None}), "counts must be text or a list of integers"),
        (lambda: Mask.from_coco({"size": [48, 64], "counts": [1.5]}), "counts must be text or a list of integers"),
        (lambda: Mask.from_coco({"counts": ""}), "a COCO RLE has the fields"),
    ],
)
def test_malformed_regions_are_never_made(make, says):
    with pytest.raises(RegionError, match=says):
        make()


def test_any_sequence_makes_a_region():
    assert Polygon([[1, 2], [3, 4], [5, 6]]) == Polygon(((1.0, 2.0), (3.0, 4.0), (5.0, 6.0)))
    assert Mask.from_array([[1, 0]]) == Mask(ImageSize(2, 1), Mask.from_array(np.array([[1, 0]])).counts)


def test_drawings_are_limited():
    size = ImageSize(64, 48)
    for region in (Polygon(((1, 1),) * 4097), Scribble(((1, 1),) * 4097)):
        with pytest.raises(RegionError, match="at most 4,096 points, got 4,097"):
            region.to_mask(size)
    with pytest.raises(RegionError, match="4,000 points are too many for a brush of 2000 pixels"):
        Scribble(((1, 1),) * 4000, 2000).to_mask(ImageSize(2000, 2000))
    with pytest.raises(RegionError, match="at most 1,000,000 runs"):
        Mask(size, "0" * 1_000_001).to_mask(size)


def test_a_brush_may_be_wider_than_a_small_picture():
    assert Scribble(((4, 4),)).to_mask(ImageSize(8, 8)).any()


def test_iou():
    assert box_iou(Box(0, 0, 10, 10), Box(5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert box_iou(Box(0, 0, 1, 1), Box(5, 5, 6, 6)) == 0
    a = Box(0, 0, 9, 9).to_mask(ImageSize(20, 20))
    assert mask_iou(a, a) == 1
