"""The house: arrows only point down."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What each room must not import.
FORBIDDEN = {
    "ferret_core": {"ray", "grpc", "streamlit", "deepspeed", "ferret", "services", "cluster", "ui"},
    "services": {"streamlit", "deepspeed", "cluster", "ui"},
    "protos": {"ferret_core", "services", "cluster", "ui"},
}


@pytest.mark.parametrize("room", FORBIDDEN)
def test_arrows_point_down(room):
    for path in (ROOT / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names.append(node.module)
            for name in names:
                assert name.split(".")[0] not in FORBIDDEN[room], f"{path.relative_to(ROOT)}:{node.lineno} imports {name}"


def test_every_package_is_installed():
    """setuptools is told every package by name, so that `ferret` can live in protos/."""
    import tomllib

    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {
        ".".join(path.parent.relative_to(ROOT).parts).removeprefix("protos.")
        for room in ("ferret_core", "services", "protos")
        for path in (ROOT / room).rglob("__init__.py")
    }
    assert found == listed
