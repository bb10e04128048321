"""docs/platform.md names every variable of the environment that the code reads."""

import ast
import re
from pathlib import Path

from services.settings import RAY_ENVIRONMENT, StoreSettings

ROOT = Path(__file__).parent.parent
INTERNAL = {
    "FERRET_TLS_PORT_SETTINGS", "FERRET_UI_SETTINGS",  # from a process of ours to those that it starts
    "RAY_JOB_CONFIG_JSON_ENV_VAR",  # of Ray, to a job
    "RAY_JOB_STOP_WAIT_TIME_S", "RAY_TRAIN_ENABLE_PRINT_PATCH", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S",  # set for Ray, not read
}  # fmt: skip


def read_by_the_code() -> set[str]:
    """Whatever is written as the name of a variable, and those that are put together from names of settings."""
    named = {f"FERRET_{name.upper()}" for name in StoreSettings.model_fields}
    for room in ("ferret_core", "services", "cluster", "ui"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    named |= {*re.findall(r"^(?:AWS|FERRET|OPENAI|OTEL|RAY)(?:_[A-Z0-9]+)+$", node.value)}
    return named - INTERNAL - RAY_ENVIRONMENT.keys()


def test_the_table_is_complete():
    """And has no other."""
    document = (ROOT / "docs/platform.md").read_text()
    table = re.search(r"^\| variable \| stands for \|\n(?:\|.*\n)+", document, re.MULTILINE)
    assert {*re.findall(r"`([A-Z][A-Z0-9_]+)(?:=1)?`", table[0])} == read_by_the_code()
