"""A picture to try things on: scene 7 of the test split."""

from pathlib import Path

EXAMPLE_PICTURE = Path(__file__).parent / "example.png"
EXAMPLE_POINT = (0.0, 0.0)
"""On one of its things."""
