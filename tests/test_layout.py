"""The house: arrows only point down."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What each room must not import, and the one file that may all the same.
ALLOWED = {("deepspeed", "ferret_core/training/strategies.py")}
FORBIDDEN = {
    "ferret_core": {"ray", "grpc", "streamlit", "deepspeed", "ferret", "services", "cluster", "ui"},
    "services": {"streamlit", "deepspeed", "cluster", "ui"},
    "protos": {"ferret_core", "services", "cluster", "ui"},
    "ui": {"ray", "torch", "transformers", "deepspeed", "ferret", "cluster"},
}


@pytest.mark.parametrize("room", FORBIDDEN)
def test_arrows_point_down(room):
    for path in (ROOT / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names.append(node.module)
            for name in names:
                package, file = name.split(".")[0], str(path.relative_to(ROOT))
                assert package not in FORBIDDEN[room] or (package, file) in ALLOWED, f"{file}:{node.lineno} imports {name}"


def test_the_page_the_client_and_the_command_line_start_without_torch():
    """Which takes seconds to import: whoever only talks to a server, or asks for --help, need not wait for it."""
    modules = "services.client, services.cli, services.cli.token, ui.cli, ui.chat, ui.components, ui.export, ferret_core.cli"
    check = f"import sys, {modules}; sys.exit(bool({{'torch', 'ray'}} & {{*sys.modules}}))"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)
