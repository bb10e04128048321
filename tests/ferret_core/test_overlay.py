"""Drawing answers."""

from PIL import Image

from ferret_core.geometry import Box, Point
from ferret_core.grounding import Span
from ferret_core.overlay import draw_overlay

IMAGE = Image.effect_noise((80, 60), 90).convert("RGB")


def test_overlay_draws_inside_the_picture():
    spans = [Span("a dog", Box(2, 2, 60, 50), 0, 5, 6, 20), Span("", Box(0, 0, 80, 60), 0, 0, 0, 0)]
    picture = draw_overlay(IMAGE, spans, {0: Point(40, 30)})
    assert picture.size == IMAGE.size
    assert picture.tobytes() != IMAGE.tobytes()
