"""A picture to try things on: scene 9 of the test split, as `ferret data playground` writes it."""

from pathlib import Path

DEMO_PICTURE = Path(__file__).parent / "demo.png"
DEMO_POINT = (295, 255)
"""On the waffle, in pixels."""
