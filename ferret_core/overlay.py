"""Drawing regions and grounded phrases onto their image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from ferret_core.geometry import ImageSize, Point, Region, Scribble, mask_bounds
from ferret_core.grounding import Span

PALETTE = ("#e6194b", "#2b8a3e", "#4363d8", "#c2410c", "#911eb4", "#008080", "#9a6324", "#808000")


def region_color(number: int) -> str:
    """The colour of `[regionN]`, wherever it is drawn."""
    return PALETTE[-1 - number % len(PALETTE)]


def phrase_colors(spans: Sequence[Span]) -> dict[str, str]:
    """A colour for each phrase of an answer."""
    return {phrase: PALETTE[i % len(PALETTE)] for i, phrase in enumerate(dict.fromkeys(span.phrase for span in spans))}


def draw_overlay(image: Image.Image, spans: Sequence[Span] = (), regions: Mapping[int, Region] | None = None) -> Image.Image:
    """A copy of the image with regions shaded and outlined, and boxes with their phrases; one colour for each phrase.

    Args:
        image: RGB.
        spans: of an answer; boxes in pixels of the image.
        regions: what the user pointed at, by number.
    """
    scale = max(1.0, max(image.size) / 640)
    font = ImageFont.load_default(size=14 * scale)
    line = max(2, round(3 * scale))
    canvas = image.convert("RGBA")
    for number, region in (regions or {}).items():
        color = region_color(number)
        _draw_region(canvas, region, color, line)
        x1, y1, _, _ = mask_bounds(region.to_mask(ImageSize(*image.size)))
        _label(ImageDraw.Draw(canvas), (x1, y1), f"[region{number}]", color, font)
    draw = ImageDraw.Draw(canvas)
    colors = phrase_colors(spans)
    for span in spans:
        color = colors[span.phrase]
        box = span.box
        draw.rectangle((box.x1, box.y1, box.x2, box.y2), outline=color, width=line)
        if span.phrase:
            _label(draw, (box.x1, box.y2), span.phrase, color, font, below=True)
    return canvas.convert("RGB")


def _draw_region(canvas: Image.Image, region: Region, color: str, line: int) -> None:
    mask = Image.fromarray(region.to_mask(ImageSize(*canvas.size)))
    canvas.paste(Image.new("RGBA", canvas.size, color), mask=mask.convert("L").point(lambda v: 110 if v else 0))
    draw = ImageDraw.Draw(canvas)
    if isinstance(region, Point):
        draw.ellipse((region.x - 2 * line, region.y - 2 * line, region.x + 2 * line, region.y + 2 * line), fill=color)
    elif isinstance(region, Scribble):
        draw.line(region.points, fill=color, width=line, joint="curve")


def _label(
    draw: ImageDraw.ImageDraw,
    anchor: tuple[float, float],
    text: str,
    color: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    below: bool = False,
) -> None:
    """A caption on a patch of colour, above or below the anchor, kept inside the picture."""
    _, _, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right + 6, bottom + 4
    limit_x, limit_y = draw.im.size
    x = min(max(anchor[0], 0), limit_x - width)
    y = min(max(anchor[1] if below else anchor[1] - height, 0), limit_y - height)
    draw.rectangle((x, y, x + width, y + height), fill=color)
    draw.text((x + 3, y + 1), text, fill="white", font=font)
