"""The README and the docs, executed: what they tell people to type runs, and prints what they say it prints."""

import contextlib
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
import urllib.request
from pathlib import Path

import pytest
import yaml

from ferret_core.training.config import TrainConfig, from_values
from services.settings import PlatformSettings
from tests.processes import assert_none_left, free_port
from ui.settings import UISettings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCS = sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("ferret_core/checkpoint/bundled/*/README.md")])
DRAWN = ROOT / "ferret-demo.png"
ON_PATH = os.environ | {"PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"}


def blocks(text, *languages):
    """(language, code) of each fenced block of one of the languages, in order."""
    return [match for match in re.findall(r"^```(\w+)\n(.*?)^```", text, re.M | re.S) if match[0] in languages]


def console(block):
    """(command, what it prints) of each command of a console block."""
    return [(lines[0], lines[1:]) for lines in (part.splitlines() for part in block.split("$ ")[1:])]


def assert_prints(told, printed):
    """Digits aside: another processor may round otherwise."""
    assert [re.sub(r"\d+", "0", line) for line in printed] == [re.sub(r"\d+", "0", line) for line in told]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A platform started by `make demo`; what it printed up to there, and its address."""
    home, port = tmp_path_factory.mktemp("home"), free_port()
    DRAWN.unlink(missing_ok=True)
    environment = ON_PATH | {
        "FERRET_HOME": str(home),
        "FERRET_PORT": str(port),
        "FERRET_HTTP_PORT": str(free_port()),
        "FERRET_UI_PORT": str(free_port()),
    }
    command = ["make", f"VENV={sys.prefix}", "demo"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        printed = []
        for line in process.stdout:
            printed.append(line)
            if line.startswith("stop:"):
                break
        else:
            pytest.fail("".join(printed))
        yield "".join(printed), f"localhost:{port}", environment
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
        process.wait(60)
    assert_none_left(home)


@pytest.mark.platform
def test_make_demo_shows_that_it_works(demo):
    printed, server, _ = demo
    assert "question: What is [region0]?  (region0 is the point 295, 255)" in printed
    assert "answer:   It is a waffle [" in printed
    assert "  a waffle: x " in printed
    assert f"--server {server}" in printed
    assert DRAWN.exists()
    (page,) = re.findall(r"page: +(http://\S+)", printed)
    with urllib.request.urlopen(page) as answer:
        assert "<title>" in answer.read().decode()


@pytest.mark.platform
def test_readme_runs(demo, tmp_path, monkeypatch):
    """Every block in order, in one directory, against one platform; only ports differ from what is written."""
    _, server, environment = demo
    (tmp_path / "ferret_core").symlink_to(ROOT / "ferret_core")  # the reader stands in the checkout
    monkeypatch.chdir(tmp_path)
    for language, code in blocks(README.replace("localhost:9000", server), "console", "python"):
        if language == "console":
            for command, told in console(code):
                result = subprocess.run(shlex.split(command), env=environment, capture_output=True, text=True)
                assert result.returncode == 0, f"{command}\n{result.stderr}"
                assert_prints(told, result.stdout.splitlines()[: len(told)])
        else:
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(code, "README.md", "exec"), {})
            assert_prints(re.findall(r"print\(.*\)  # (.*)", code), output.getvalue().splitlines())


def test_readme_names_the_two_commands():
    """`make demo` runs above; `make test` is what runs this; `make bench` takes hours."""
    assert re.findall(r"^make \w+", blocks(README, "sh")[0][1], re.M) == ["make demo", "make test", "make bench"]
    subprocess.run(["make", "-n", f"VENV={sys.prefix}", "test", "bench"], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("path", [ROOT / "README.md", *DOCS], ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        assert target.startswith("https://") or (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documented_commands_are_understood(path, tmp_path):
    """Commands of the docs that take hours, made short: ready-made trainings only show their settings, playgrounds handle few
    scenes, and evaluations on data sets only show that they have such flags. Files that a page shows are there."""
    (tmp_path / "ferret_core").symlink_to(ROOT / "ferret_core")  # the reader stands in the checkout
    for _, code in blocks(path.read_text(), "yaml"):
        if name := re.match(r"# ([\w-]+\.yaml)\b", code):
            (tmp_path / name[1]).write_text(code)
    for _, code in blocks(path.read_text(), "console"):
        for command, _ in console(code):
            words, flags = shlex.split(command, comments=True), []
            assert words[0] == "ferret", command
            if words[1] == "train" and "ferret_core/training/configs" in command and "--dry-run" not in words:
                words.append("--show")
            elif words[1] in ("up", "down", "status", "ui"):
                words.append("--help")
            elif words[1:3] == ["eval", "playground"]:
                words += ["--scenes", "1"]
            elif words[1] == "eval":
                words, flags = [*words[:3], "--help"], [word for word in words if word.startswith("--")]
            result = subprocess.run(words, cwd=tmp_path, env=ON_PATH | {"COLUMNS": "200"}, capture_output=True, text=True)
            assert result.returncode == 0, f"{command}\n{result.stderr}"
            assert not [flag for flag in flags if f"{flag} " not in result.stdout], command


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documented_settings_are_valid(path):
    for _, code in blocks(path.read_text(), "yaml"):
        values = yaml.safe_load(code)
        if path.name == "training.md":
            from_values(TrainConfig, values)
        else:
            (UISettings if path.name == "page.md" else PlatformSettings)(**values)
