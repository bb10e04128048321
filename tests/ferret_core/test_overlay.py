"""Drawing answers."""

from PIL import Image

from ferret_core.geometry import ImageSize, Point
from ferret_core.grounding import find_spans
from ferret_core.overlay import draw_overlay

IMAGE = Image.effect_noise((80, 60), 90).convert("RGB")


def test_overlay_draws_inside_the_picture():
    spans = find_spans("a dog [25, 33, 750, 833]. [0, 0, 1000, 1000]", ImageSize(80, 60))
    assert [span.phrase for span in spans] == ["a dog", ""]
    picture = draw_overlay(IMAGE, spans, {0: Point(40, 30)})
    assert picture.size == IMAGE.size
    assert picture.tobytes() != IMAGE.tobytes()
