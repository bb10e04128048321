"""The file of tokens, and the command that keeps it."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from services.access import Limit, TokenFile, create_token, list_tokens, revoke_token

ASK = ("ask",)


def test_a_token_stands_nowhere_but_with_its_holder(tmp_path):
    path = tmp_path / "new" / "tokens.yaml"
    secrets = {name: create_token(path, name, ASK, Limit(rate=7)) for name in ("web", "bot@example.org")}
    assert path.stat().st_mode & 0o777 == 0o600
    assert all(re.fullmatch(r"ferret_[\w-]{43}", secret) for secret in secrets.values())
    assert not any(secret[7:] in path.read_text() for secret in secrets.values())
    tokens = TokenFile(path)
    for name, secret in secrets.items():
        found = tokens.find(secret)
        assert (found.name, found.scopes, found.rate) == (name, ASK, 7)
        for other in (secret[:-1], secret + "x", secret.upper(), found.sha256, "", "ferret_", "\udcff"):
            assert tokens.find(other) is None


def test_changes_are_seen_at_once(tmp_path):
    path = tmp_path / "tokens.yaml"
    web = create_token(path, "web", ASK, Limit())
    tokens = TokenFile(path)
    bot = create_token(path, "bot", ASK, Limit())
    assert tokens.find(bot).name == "bot"
    revoke_token(path, "web")
    assert tokens.find(web) is None
    assert tokens.find(bot).name == "bot"
    with pytest.raises(ValueError, match="no token named 'web'; see `ferret token list`"):
        revoke_token(path, "web")


@pytest.mark.parametrize("broken", ["tokens: [", "tokens: 7", "- a", "tokens: [{name: web}]", "\x00"])
def test_a_broken_change_leaves_the_tokens_before_it(tmp_path, broken, caplog):
    """Whoever revokes a token must not lock everybody out with a slip, nor let anybody in."""
    path = tmp_path / "tokens.yaml"
    secret = create_token(path, "web", ASK, Limit())
    tokens, good = TokenFile(path), path.read_text()
    path.write_text(broken)
    assert tokens.find(secret).name == "web"
    assert tokens.find("ferret_other") is None
    with pytest.raises(ValueError, match=f"tokens_file: {path}"):
        TokenFile(path)
    path.unlink()
    assert tokens.find(secret).name == "web"
    path.write_text("tokens: []")
    assert tokens.find(secret) is None
    path.write_text(good)
    assert tokens.find(secret).name == "web"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"scopes": ["root"]}, "tokens.0.scopes.0"),
        ({"rate": 0}, "tokens.0.rate"),
        ({"sha256": "ferret_x"}, "tokens.0.sha256"),
        ({"color": "red"}, "tokens.0.color"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, change, says):
    path = tmp_path / "tokens.yaml"
    create_token(path, "web", ASK, Limit())
    held = yaml.safe_load(path.read_text())
    held["tokens"][0] |= change
    path.write_text(yaml.safe_dump(held))
    with pytest.raises(ValueError, match=says):
        TokenFile(path)


def test_names_are_taken_once(tmp_path):
    path = tmp_path / "tokens.yaml"
    create_token(path, "web", ASK, Limit())
    with pytest.raises(ValueError, match="revoke it first"):
        create_token(path, "web", ASK, Limit())
    held = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({"tokens": held["tokens"] * 2}))
    with pytest.raises(ValueError, match="two tokens have the name web"):
        TokenFile(path)
    with pytest.raises(ValueError, match="no such file"):
        TokenFile(tmp_path / "none.yaml")


def test_writers_do_not_lose_each_others_tokens(tmp_path):
    path = tmp_path / "tokens.yaml"
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda i: create_token(path, f"t{i}", ASK, Limit()), range(24)))
    assert {token.name for token in list_tokens(path)} == {f"t{i}" for i in range(24)}


def test_the_command(tmp_path):
    path = tmp_path / "tokens.yaml"

    def ferret(*arguments):
        command = [sys.executable, "-m", "ferret_core.cli", "token", *arguments]
        return subprocess.run(command, env=os.environ | {"FERRET_TOKENS_FILE": str(path)}, capture_output=True, text=True)

    limits = ("--rate", "30", "--burst", "4", "--concurrent", "2")
    created = ferret("create", "--name", "web", "--scopes", "ask,delete", *limits)
    (token,) = created.stdout.split()
    found = TokenFile(path).find(token)
    assert (found.name, found.scopes, found.rate, found.burst, found.concurrent) == ("web", ("ask", "delete"), 30, 4, 2)
    listed = ferret("list").stdout
    assert "web" in listed
    assert "30 a minute, 4 at once, 2 at a time" in listed
    assert token not in listed
    for arguments, says in (
        (("--name", "bot", "--scopes", "ask,root"), "--scopes: no scope 'root'; there are ask, feedback, delete"),
        (("--name", "a b"), "--name a b: use 1 to 64 letters, digits"),
        (("--name", "bot", "--rate", "0", "--burst", "0"), "ferret: --rate: must be greater than 0, got 0.0\n--burst: must"),
    ):
        failed = ferret("create", *arguments)
        assert (failed.returncode, failed.stdout) == (1, "")
        assert says in failed.stderr
        assert "Traceback" not in failed.stderr
    assert ferret("revoke", "--name", "web").returncode == 0
    assert ferret("list").stdout == ""
    assert ferret("revoke", "--name", "web").returncode == 1
