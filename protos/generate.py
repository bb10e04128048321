"""Writes the Python of the `.proto` files beside them (or under another directory, for comparison).

python protos/generate.py [DIRECTORY]
"""

import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parent


def generate(output: Path = ROOT) -> None:
    """Runs protoc over every file; raises `SystemExit` if it fails."""
    sources = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.proto"))
    well_known = files("grpc_tools") / "_proto"
    outputs = [f"--{kind}_out={output}" for kind in ("python", "pyi", "grpc_python")]
    if protoc.main(["protoc", f"-I{ROOT}", f"-I{well_known}", *outputs, *sources]):
        raise SystemExit("protoc failed")
    for stub in output.rglob("*_pb2_grpc.py"):  # files without a service
        if "class " not in stub.read_text():
            stub.unlink()


if __name__ == "__main__":
    generate(*map(Path, sys.argv[1:2]))
