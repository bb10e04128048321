"""A client in another language, made of nothing but the .proto files: it asks as ours does, and is told the same."""

import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ferret_core.data.playground import playground_example
from tests.test_readme import ROOT

pytestmark = pytest.mark.platform

SOURCE = Path(__file__).parent / "node_client"


@pytest.fixture(scope="module")
def node_client(tmp_path_factory):
    """Where it is installed."""
    if not shutil.which("npm") and not os.environ.get("CI"):
        pytest.skip("needs Node.js and npm")
    directory = tmp_path_factory.mktemp("node") / "client"
    shutil.copytree(SOURCE, directory, ignore=shutil.ignore_patterns("node_modules"))
    subprocess.run(["npm", "ci", "--silent", "--ignore-scripts"], cwd=directory, check=True, capture_output=True)
    return directory


def ask(node_client, platform, picture, question, box):
    """What it prints: an object a line."""
    numbers = ",".join(map(str, dataclasses.astuple(box)))
    command = ["node", "client.js", str(ROOT / "protos"), platform.server, str(picture), question, numbers]
    done = subprocess.run(command, cwd=node_client, capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_it_is_told_what_our_client_is_told(node_client, platform, client, tmp_path):
    example = playground_example("test", 5, 1, kinds=("name",), gestures=("box",))
    example.image.save(tmp_path / "scene.png")
    question, (box,) = example.record.turns[0].question, example.record.regions
    size = client.set_image(tmp_path / "scene.png")
    answer = client.ask(question, [box])
    assert answer.spans

    code, (first, *events, last) = ask(node_client, platform, tmp_path / "scene.png", question, box)
    assert code == 0
    assert first["image"] | {"id": ""} == {"id": "", **size._asdict()}
    assert "".join(event["text_delta"]["text"] for event in events if "text_delta" in event) == answer.text
    spans = [event["span"] for event in events if "span" in event]
    assert spans == [dataclasses.asdict(span) for span in answer.spans]
    assert last["finish"] == {
        "reason": "FINISH_REASON_STOP",
        "usage": dataclasses.asdict(answer.usage),
        "image_id": first["image"]["id"],
        "model": "playground",
    }


def test_errors_have_their_names(node_client, platform, tmp_path):
    example = playground_example("test", 5, 1, kinds=("name",), gestures=("box",))
    example.image.save(tmp_path / "scene.png")
    code, (*_, last) = ask(node_client, platform, tmp_path / "scene.png", "What is [region7]?", example.record.regions[0])
    assert (code, last["error"]["status"]) == (1, "INVALID_ARGUMENT")
    assert "[region7] is not among the regions" in last["error"]["message"]
