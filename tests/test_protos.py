"""The wire contract: the checked-in Python is what the `.proto` files say."""

import importlib.util
from pathlib import Path

PROTOS = Path(__file__).parent.parent / "protos"


def test_generated_code_is_current(tmp_path):
    spec = importlib.util.spec_from_file_location("generate", PROTOS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.generate(tmp_path)
    fresh = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*_pb2*")}
    kept = {
        path.relative_to(PROTOS): path.read_text() for path in PROTOS.rglob("*_pb2*.py*") if "__pycache__" not in path.parts
    }
    assert fresh.keys() == kept.keys(), "run `make protos`"
    for name, text in fresh.items():
        assert kept[name] == text, f"{name} is out of date: run `make protos`"


def test_buf_style():
    """Directory = package, one request and response per RPC, zero values unspecified."""
    import re

    for path in PROTOS.rglob("*.proto"):
        text = path.read_text()
        assert f"package {'.'.join(path.parent.relative_to(PROTOS).parts)};" in text
        for name, request, response in re.findall(r"rpc (\w+)\((\w+)\) returns \((?:stream )?(\w+)\)", text):
            assert (request, response) == (f"{name}Request", f"{name}Response")
        for zero in re.findall(r"enum \w+ \{\s*(?://[^\n]*\s*)*(\w+) = 0", text):
            assert zero.endswith("_UNSPECIFIED")
