"""Drawing styles: the things of the playground, drawn by several hands.

    pictures = open_style("flat")                 # or a directory of CODEPOINT.webp, .png or .svg, of anyone's emoji
    pictures[thing]                               # trimmed, at full, half and quarter size
    painter = Painter("mixed", rng)               # as training scenes are drawn: any style, any colours, some outlined

`3d` is what scenes look like unless asked for otherwise; `flat` and `ink` are the same things without shading and without
colour, and `comic` is ink over flat. They are Microsoft's Fluent Emoji (MIT, see `sprites/LICENSE`, made by `sprites/make.py`).
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageFilter, ImageOps

from ferret_core.data.playground.objects import THINGS, Thing

SPRITES = Path(__file__).parent / "sprites"
STYLES = ("3d", "flat", "ink", "comic")
MIXED = "mixed"
"""Any of `STYLES`, in any colours: what training scenes are drawn in."""

_MIXED_SHARES = (0.4, 0.25, 0.1, 0.25)  # of STYLES
_SCENE_CHANCE = 0.6  # of all things of a mixed scene being drawn by one hand
_PLAIN_CHANCE = 0.4  # of a thing of a mixed scene keeping its own colours
_OUTLINE_CHANCE = 0.15
_SPREAD = [0] * 24 + [255] * 232  # of blurred alpha: all that is near
_SVG_SIDE = 192
_FORMATS = (".webp", ".png", ".svg")

Levels = tuple[Image.Image, ...]
"""A picture, RGBA and trimmed, at full, half and quarter size: resizing from a near size is fast."""


class Pictures(Mapping[Thing, Levels]):
    """The pictures of one style, read when they are first needed; a thing that the style does not draw is not in it."""

    def __init__(self, layers: Mapping[Thing, tuple[Path, ...]], grey: bool = False) -> None:
        self._layers = layers  # the second one, if any, is ink over the first
        self.grey = grey  # without colours of its own
        self._levels: dict[Thing, Levels] = {}

    def __getitem__(self, thing: Thing) -> Levels:
        if thing not in self._levels:
            bottom, *rest = map(read_picture, self._layers[thing])
            for ink in rest:
                bottom = _inked(bottom, ink)
            full = trim(bottom)
            self._levels[thing] = full, full.reduce(2), full.reduce(4)
        return self._levels[thing]

    def __iter__(self) -> Iterator[Thing]:
        return iter(self._layers)

    def __contains__(self, thing: object) -> bool:
        return thing in self._layers

    def __len__(self) -> int:
        return len(self._layers)


@cache
def open_style(style: str | Path) -> Pictures:
    """The pictures of a bundled style, or of a directory of files named by code point.

    Names may be as anyone's: `1f577-fe0f.png`, `1F577.svg`, `emoji_u1f577.png`. Raises `ValueError` if the style is neither
    one of `STYLES` nor a directory that draws at least half of `THINGS`.
    """
    if style == "comic":
        flat, ink = _files(SPRITES / "flat"), _files(SPRITES / "ink")
        return Pictures({thing: (flat[key], ink[key]) for thing, key in _keys().items()})
    directory = SPRITES / style if style in STYLES else Path(style)
    if not directory.is_dir():
        raise ValueError(f"style {str(style)!r} is neither one of {', '.join(STYLES)} nor a directory")
    files = _files(directory)
    layers = {thing: (files[key],) for thing, key in _keys().items() if key in files}
    if 2 * len(layers) < len(THINGS):
        raise ValueError(
            f"{directory} draws {len(layers)} of the {len(THINGS)} things; expected files named by code point, such as "
            "1f415.webp, 1F415.png or emoji_u1f415.svg for the dog"
        )
    return Pictures(layers, grey=style == "ink")


def sprite_key(stem: str) -> str:
    """The code points of a file stem as all styles spell them: lower case, without variation selectors."""
    return "-".join(part for part in stem.lower().removeprefix("emoji_u").replace("_", "-").split("-") if part != "fe0f")


@cache
def _keys() -> dict[Thing, str]:
    return {thing: sprite_key(thing.sprite) for thing in THINGS}


def _files(directory: Path) -> dict[str, Path]:
    """By `sprite_key`; of several formats the fastest to read."""
    found = [path for path in sorted(directory.iterdir()) if path.suffix.lower() in _FORMATS]
    found.sort(key=lambda path: _FORMATS.index(path.suffix.lower()), reverse=True)
    return {sprite_key(path.stem): path for path in found}


def read_picture(path: Path) -> Image.Image:
    """A picture file as RGBA. Raises `ValueError` if it is none, or an SVG without a way to draw it."""
    if path.suffix.lower() == ".svg":
        return render_svg(path.read_text())
    try:
        with Image.open(path) as picture:
            return picture.convert("RGBA")
    except OSError as error:
        raise ValueError(f"{path} is no picture that can be read: {error}") from error


def render_svg(svg: str) -> Image.Image:
    """An SVG drawing, RGBA."""
    try:
        resvg = import_module("resvg_py")
    except ImportError as error:
        raise ValueError("drawings in SVG need `pip install resvg-py`, or converting to PNG or WebP first") from error
    with Image.open(io.BytesIO(bytes(resvg.svg_to_bytes(svg_string=svg, width=_SVG_SIDE, height=_SVG_SIDE)))) as picture:
        return picture.convert("RGBA")


def opaque(sprite: Image.Image) -> np.ndarray:
    """The pixels that count as the thing's, bool `(height, width)`."""
    return np.asarray(sprite.getchannel("A")) > 127


def trim(sprite: Image.Image) -> Image.Image:
    """The sprite cropped to its opaque pixels."""
    return sprite.crop(Image.fromarray(opaque(sprite)).getbbox())


def _inked(colours: Image.Image, ink: Image.Image) -> Image.Image:
    """A drawing with ink lines over its colours."""
    paper = Image.new("RGBA", colours.size, "white")
    paper.alpha_composite(colours)
    picture = ImageChops.multiply(paper.convert("RGB"), ink.convert("RGB"))
    picture.putalpha(ImageChops.lighter(colours.getchannel("A"), ink.getchannel("A")))
    return picture


class Painter:
    """Draws the things of one scene.

    In a style of one name all things keep their colours. In `MIXED`, each scene or each thing is in a style of its own, some
    in other colours and some outlined. What is random here has random numbers of its own, so that a scene of one style has the
    same things in the same places as if there were no others.
    """

    def __init__(self, style: str | Path, rng: np.random.Generator) -> None:
        self.rng = rng.spawn(1)[0]
        self.mixed = style == MIXED
        self._styles = tuple(map(open_style, STYLES if self.mixed else (style,)))
        self._one = self._any_style() if not self.mixed or self.rng.random() < _SCENE_CHANCE else None

    def _any_style(self) -> Pictures:
        return self._styles[self.rng.choice(len(STYLES), p=_MIXED_SHARES)] if self.mixed else self._styles[0]

    def pictures(self) -> Pictures:
        """What the next thing is drawn from."""
        return self._one if self._one is not None else self._any_style()

    def finish(self, sprite: Image.Image, pictures: Pictures) -> Image.Image:
        """A sprite made from one of `pictures`, as it goes into the scene."""
        if not self.mixed:
            return sprite
        if self.rng.random() > _PLAIN_CHANCE:
            sprite = self._recoloured(sprite, pictures.grey)
        if self.rng.random() < _OUTLINE_CHANCE:
            sprite = self._outlined(sprite)
        return sprite

    def _recoloured(self, sprite: Image.Image, grey: bool) -> Image.Image:
        """In other colours: less or more of them, turned a little, with another contrast; what is grey in two tints."""
        alpha, colours = sprite.getchannel("A"), sprite.convert("RGB")
        if grey:
            dark, pale = self.rng.integers(0, 110, 3), self.rng.integers(150, 256, 3)
            picture = ImageOps.colorize(colours.convert("L"), tuple(dark.tolist()), tuple(pale.tolist()))
        else:
            picture = colours.convert("RGB", _colour_matrix(self.rng))
            if self.rng.random() < 0.15:
                picture = ImageOps.posterize(picture, int(self.rng.integers(2, 5)))
        picture.putalpha(alpha)
        return picture

    def _outlined(self, sprite: Image.Image) -> Image.Image:
        """With a border, dark or white, of a few percent of its size."""
        width = max(1, round(max(sprite.size) * self.rng.uniform(0.01, 0.04)))
        wide = ImageOps.expand(sprite, width, 0)
        colour = (255, 255, 255) if self.rng.random() < 0.3 else tuple(self.rng.integers(0, 60, 3).tolist())
        picture = Image.new("RGBA", wide.size, colour)
        picture.putalpha(wide.getchannel("A").filter(ImageFilter.BoxBlur(width)).point(_SPREAD))
        picture.alpha_composite(wide)
        return picture


def _colour_matrix(rng: np.random.Generator) -> tuple[float, ...]:
    """Pillow's 3 x 4 matrix of a random saturation, turn of hue, contrast and brightness."""
    grey = np.full((3, 3), 1 / 3)
    saturation, turn = rng.uniform(0.2, 1.4), rng.uniform(-0.35, 0.35)  # of hue, in radians
    axis = np.cross(np.eye(3), np.full(3, 1 / math.sqrt(3)))
    rotation = math.cos(turn) * np.eye(3) + math.sin(turn) * axis + (1 - math.cos(turn)) * grey
    contrast, middle = rng.uniform(0.6, 1.2), rng.uniform(100, 156)
    matrix = contrast * (grey + saturation * (rotation - grey))
    return tuple(np.column_stack((matrix, np.full(3, (1 - contrast) * middle))).ravel().tolist())
