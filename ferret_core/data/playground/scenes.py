"""Scenes of the playground world: a background with 2 to 8 things on it, and exactly where each of them is.

    scene = generate_scene(scene_rng("test", 7), WORLDS["test"])
    scene.image, scene.objects[0].thing.name, scene.objects[0].box, scene.mask_of(0)

A scene is a function of (split, index, seed) and of its world: the same everywhere, and never shared between splits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from ferret_core.data.playground.objects import THINGS, Thing
from ferret_core.data.playground.styles import MIXED, Levels, Painter, opaque, trim
from ferret_core.data.records import SPLITS, Split
from ferret_core.geometry import Box, ImageSize, mask_bounds

_MIN_OBJECTS, _MAX_OBJECTS = 2, 8
_ATTEMPTS = 12  # to find room, for each thing that is wanted
_BACKGROUNDS = ("gradient", "clouds", "stripes", "checkerboard", "sky above ground")


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What scenes look like and how hard they are. The defaults make the scenes that models are compared on: they stay."""

    style: str | Path = "3d"
    """One of `STYLES`, a directory of pictures (see `styles.open_style`), or `mixed`."""
    hard: bool = False
    """Whether, to a degree that differs from scene to scene, things are smaller, more covered and more often several of a kind,
    and questions more often about look-alikes, about what is not there, and about one of several."""


WORLDS: dict[Split, World] = {"train": World(style=MIXED, hard=True), "validation": World(), "test": World()}


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


def scene_rng(split: Split, index: int, seed: int = 0) -> np.random.Generator:
    """The random numbers of scene `index` of a split; another seed makes other scenes."""
    return np.random.default_rng([SPLITS.index(split), index, seed])


def generate_scene(rng: np.random.Generator, world: World = World()) -> Scene:
    """A random scene: 2 to 8 things, fewer if they do not fit.

    Raises `ValueError` if there is no such style.
    """
    side, aspect = rng.uniform(256, 480), math.exp(rng.uniform(-0.55, 0.55))
    size = ImageSize(round(side * math.sqrt(aspect)), round(side / math.sqrt(aspect)))
    count = int(rng.integers(_MIN_OBJECTS, _MAX_OBJECTS + 1))
    hardness = rng.uniform() if world.hard else 0.0
    smallest, largest = (
        0.17 - 0.06 * hardness,
        0.5 if count <= 4 else 0.36,
    )  # longer side of a thing, of the picture's mean side
    min_visible = 0.8 - 0.2 * hardness  # of each thing's own pixels, after others were put in front of it
    duplicate_chance = 0.3 + 0.2 * hardness  # of a thing being another one of a kind already in the scene

    painter = Painter(world.style, rng)
    image = _background(rng, size)
    instances = np.zeros((size.height, size.width), np.uint8)
    things: list[Thing] = []
    areas, visible = np.zeros((2, _MAX_OBJECTS), int)  # of each thing in pixels, with and without what is hidden
    for _ in range(count * _ATTEMPTS):
        if len(things) == count:
            break
        repeat = things and rng.random() < duplicate_chance
        thing = things[rng.integers(len(things))] if repeat else THINGS[rng.integers(len(THINGS))]
        pictures = painter.pictures()
        if thing not in pictures:
            continue
        longest = side * math.exp(rng.uniform(math.log(smallest), math.log(largest)))
        sprite = painter.finish(_sprite(pictures[thing], rng, longest), pictures)
        if sprite.width >= size.width or sprite.height >= size.height:
            continue
        x, y = int(rng.integers(size.width - sprite.width)), int(rng.integers(size.height - sprite.height))
        solid = opaque(sprite)
        window = instances[y : y + sprite.height, x : x + sprite.width]
        hidden = np.bincount(window[solid], minlength=_MAX_OBJECTS + 1)[1:]
        if (visible - hidden < min_visible * areas).any():
            continue
        image.paste(sprite, (x, y), sprite)
        visible -= hidden
        areas[len(things)] = visible[len(things)] = solid.sum()
        things.append(thing)
        window[solid] = len(things)

    objects = tuple(SceneObject(thing, Box(*mask_bounds(instances == i))) for i, thing in enumerate(things, start=1))
    return Scene(image, objects, instances)


def _sprite(levels: Levels, rng: np.random.Generator, longest: float) -> Image.Image:
    """A picture, `longest` pixels on its longer side, with a little variety."""
    source = next((level for level in reversed(levels) if max(level.size) >= longest), levels[0])
    scale = longest / max(source.size)
    stretch = math.exp(rng.uniform(-0.1, 0.1))
    size = max(8, round(source.width * scale * stretch)), max(8, round(source.height * scale / stretch))
    sprite = source.resize(size, Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.5:
        sprite = trim(sprite.rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR, expand=True))
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
