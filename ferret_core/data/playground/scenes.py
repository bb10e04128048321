"""Scenes of the playground world: a background with 2 to 8 things on it, and exactly where each of them is.

    scene = generate_scene(scene_rng("test", 7))
    scene.image, scene.objects[0].thing.name, scene.objects[0].box, scene.mask_of(0)

A scene is a function of (split, index): the same everywhere, and never shared between splits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageEnhance

from ferret_core.data.playground.objects import SPRITES, THINGS, Thing
from ferret_core.geometry import Box, ImageSize, mask_bounds

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

_MIN_OBJECTS, _MAX_OBJECTS = 2, 8
_MIN_VISIBLE = 0.8  # of each thing's own pixels, after others were put in front of it
_DUPLICATE_CHANCE = 0.3  # of a thing being another one of a kind already in the scene
_ATTEMPTS = 12  # to find room, for each thing that is wanted
_BACKGROUNDS = ("gradient", "clouds", "stripes", "checkerboard", "sky above ground")


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One thing in a scene."""

    thing: Thing
    box: Box
    """Bounding box of its visible pixels, both corners included, in image pixels."""

    @property
    def center(self) -> tuple[float, float]:
        """Middle of the box, in image pixels."""
        return (self.box.x1 + self.box.x2) / 2, (self.box.y1 + self.box.y2) / 2


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture and what is in it."""

    image: Image.Image
    objects: tuple[SceneObject, ...]
    instances: np.ndarray
    """uint8 `(height, width)`: 0 for background, i + 1 for a pixel of object i."""

    @property
    def size(self) -> ImageSize:
        """Size of the picture in pixels."""
        return ImageSize(*self.image.size)

    def mask_of(self, i: int) -> np.ndarray:
        """Visible pixels of object i, bool `(height, width)`."""
        return self.instances == i + 1


def scene_rng(split: Split, index: int) -> np.random.Generator:
    """The random numbers of scene `index` of a split."""
    return np.random.default_rng([SPLITS.index(split), index])


def generate_scene(rng: np.random.Generator) -> Scene:
    """A random scene: 2 to 8 things, fewer if they do not fit."""
    side, aspect = rng.uniform(256, 480), math.exp(rng.uniform(-0.55, 0.55))
    size = ImageSize(round(side * math.sqrt(aspect)), round(side / math.sqrt(aspect)))
    count = int(rng.integers(_MIN_OBJECTS, _MAX_OBJECTS + 1))
    smallest, largest = 0.17, 0.5 if count <= 4 else 0.36  # longer side of a thing, of the picture's mean side

    image = _background(rng, size)
    instances = np.zeros((size.height, size.width), np.uint8)
    things: list[Thing] = []
    areas: list[int] = []  # of each thing in pixels, hidden ones included
    for _ in range(count * _ATTEMPTS):
        if len(things) == count:
            break
        repeat = things and rng.random() < _DUPLICATE_CHANCE
        thing = things[rng.integers(len(things))] if repeat else THINGS[rng.integers(len(THINGS))]
        sprite = _sprite(thing, rng, side * math.exp(rng.uniform(math.log(smallest), math.log(largest))))
        if sprite.width >= size.width or sprite.height >= size.height:
            continue
        x, y = int(rng.integers(size.width - sprite.width)), int(rng.integers(size.height - sprite.height))
        opaque = _opaque(sprite)
        window = instances[y : y + sprite.height, x : x + sprite.width]
        hidden = np.bincount(window[opaque], minlength=len(things) + 1)[1:]
        visible = np.bincount(instances.ravel(), minlength=len(things) + 1)[1:] - hidden
        if any(seen < _MIN_VISIBLE * area for seen, area in zip(visible, areas, strict=True)):
            continue
        image.paste(sprite, (x, y), sprite)
        things.append(thing)
        areas.append(int(opaque.sum()))
        window[opaque] = len(things)

    objects = tuple(SceneObject(thing, Box(*mask_bounds(instances == i))) for i, thing in enumerate(things, start=1))
    return Scene(image, objects, instances)


def _opaque(sprite: Image.Image) -> np.ndarray:
    """The pixels that count as the thing's, bool `(height, width)`."""
    return np.asarray(sprite.getchannel("A")) > 127


def _trim(sprite: Image.Image) -> Image.Image:
    """The sprite cropped to its opaque pixels."""
    return sprite.crop(Image.fromarray(_opaque(sprite)).getbbox())


@cache
def _mipmaps(sprite: str) -> tuple[Image.Image, ...]:
    """The sprite, trimmed, at full, half and quarter size: resizing from a near size is fast."""
    with Image.open(SPRITES / f"{sprite}.webp") as picture:
        full = _trim(picture.convert("RGBA"))
    return full, full.reduce(2), full.reduce(4)


def _sprite(thing: Thing, rng: np.random.Generator, longest: float) -> Image.Image:
    """The picture of a thing, `longest` pixels on its longer side, with a little variety."""
    levels = _mipmaps(thing.sprite)
    source = next((level for level in reversed(levels) if max(level.size) >= longest), levels[0])
    scale = longest / max(source.size)
    stretch = math.exp(rng.uniform(-0.1, 0.1))
    size = max(8, round(source.width * scale * stretch)), max(8, round(source.height * scale / stretch))
    sprite = source.resize(size, Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.5:
        sprite = _trim(sprite.rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR, expand=True))
    if rng.random() < 0.5:
        alpha = sprite.getchannel("A")
        sprite = ImageEnhance.Brightness(sprite).enhance(rng.uniform(0.8, 1.15))
        sprite.putalpha(alpha)
    return sprite


def _background(rng: np.random.Generator, size: ImageSize) -> Image.Image:
    """One of `_BACKGROUNDS` between two random colours, sometimes with grain."""
    style = _BACKGROUNDS[rng.integers(len(_BACKGROUNDS))]
    a, b = rng.integers(40, 256, (2, 3)).astype(np.float32)
    y, x = np.mgrid[0:1:32j, 0:1:32j].astype(np.float32)
    if style == "gradient":
        angle = rng.uniform(0, 2 * math.pi)
        blend = _to_unit_range(x * math.cos(angle) + y * math.sin(angle))
    elif style == "clouds":
        blend = np.zeros((32, 32), np.float32)
        for cells in (3, 6, 12):
            noise = Image.fromarray(rng.random((cells, cells), np.float32)).resize((32, 32), Image.Resampling.BICUBIC)
            blend += np.asarray(noise) * 3 / cells
        blend = _to_unit_range(blend)
    elif style == "stripes":
        angle, waves = rng.uniform(0, math.pi), rng.uniform(3, 12)
        blend = 0.5 + 0.25 * np.sin(2 * math.pi * waves * (x * math.cos(angle) + y * math.sin(angle)))
    elif style == "checkerboard":
        cells = int(rng.integers(2, 8))
        blend = 0.4 + 0.2 * ((np.floor(x * cells * 0.999) + np.floor(y * cells * 0.999)) % 2)
    else:  # sky above ground
        horizon = rng.uniform(0.3, 0.7)
        blend = np.where(y < horizon, 0.35 * y / horizon, 1.0 - 0.3 * (y - horizon))
    small = a + (b - a) * blend[..., None]
    method = Image.Resampling.NEAREST if style == "checkerboard" else Image.Resampling.BICUBIC
    image = Image.fromarray(small.clip(0, 255).astype(np.uint8)).resize(size, method)
    if rng.random() < 0.3:  # grain
        grain = Image.fromarray(rng.integers(0, 256, (size.height, size.width), np.uint8)).convert("RGB")
        image = Image.blend(image, grain, 0.08)
    return image


def _to_unit_range(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / np.ptp(values)
