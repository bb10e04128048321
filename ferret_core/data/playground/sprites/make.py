"""Draws the sprites of `flat/` and `ink/` from Microsoft's Fluent Emoji (MIT) as packaged on npm.

    npm pack @lobehub/fluent-emoji-flat@1.1.0 @iconify-json/fluent-emoji-high-contrast@1.2.6   # unpack each into a directory
    pip install resvg-py
    python -m ferret_core.data.playground.sprites.make FLAT_DIRECTORY HIGH_CONTRAST_DIRECTORY

`3d/` holds the files of @lobehub/fluent-emoji-3d@1.1.0 as they are.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ferret_core.data.playground.objects import THINGS, Thing
from ferret_core.data.playground.styles import SPRITES, read_picture, render_svg, sprite_key


def save(picture: Image.Image, style: str, thing: Thing) -> None:
    """As a sprite of a style."""
    picture.save(SPRITES / style / f"{thing.sprite}.webp", quality=75, alpha_quality=75, method=6)


def make_flat(package: Path) -> None:
    """Coloured shapes without shading."""
    for thing in THINGS:
        save(read_picture(package / "assets" / f"{thing.sprite}.svg"), "flat", thing)


def make_ink(package: Path) -> None:
    """Black ink on white paper, cut out along the outline: the font-like drawings have no paper of their own."""
    icons = json.loads((package / "icons.json").read_text())["icons"]
    names = {sprite_key(code): name for code, name in json.loads((package / "chars.json").read_text()).items()}
    for thing in THINGS:
        body = icons[names[sprite_key(thing.sprite)]]["body"]
        drawing = render_svg(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32" color="#000">{body}</svg>')
        ink = np.asarray(drawing.getchannel("A"))
        reached = Image.fromarray(np.where(np.pad(ink, 1) > 127, 255, 0).astype(np.uint8)).copy()
        ImageDraw.floodfill(reached, (0, 0), 128)
        paper = np.asarray(reached)[1:-1, 1:-1] != 128
        alpha = np.where(paper, 255, ink)
        grey = Image.fromarray(np.where(paper, 255 - ink, 0).astype(np.uint8))
        save(Image.merge("RGBA", (grey, grey, grey, Image.fromarray(alpha.astype(np.uint8)))), "ink", thing)


if __name__ == "__main__":
    make_flat(Path(sys.argv[1]))
    make_ink(Path(sys.argv[2]))
