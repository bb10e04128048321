"""A picture to try things on: scene 9 of the test split, as `ferret data playground` writes it."""

from pathlib import Path

EXAMPLE_PICTURE = Path(__file__).parent / "example.png"
EXAMPLE_POINT = (295, 255)
"""On the waffle, in pixels."""
