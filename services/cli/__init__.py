"""The commands that the platform adds to `ferret`, a file for each group. `pyproject.toml` registers them."""

from services.cli.bench import bench
from services.cli.deploy import deploy
from services.cli.status import status
from services.cli.up import demo, down, up

__all__ = ["bench", "demo", "deploy", "down", "status", "up"]
