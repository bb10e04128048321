"""Settings of the stores, and what is wrong with any."""

import os
import subprocess

import pytest

from services.settings import PlatformSettings, StoreSettings
from tests.processes import FERRET


def test_the_environment_has_the_defaults(monkeypatch, tmp_path):
    for name, value in {"FERRET_S3_URL": "s3://b/p", "FERRET_CONVERSATION_DAYS": "7", "FERRET_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    stores = PlatformSettings().stores
    assert (stores.s3_url, stores.conversation_days, stores.directory, stores.redis_url) == ("s3://b/p", 7, tmp_path, None)
    assert PlatformSettings(stores={"s3_url": "s3://c"}).stores.s3_url == "s3://c"


def test_no_password_gets_into_the_settings(monkeypatch):
    for url, kept in {
        "redis://:pass@host:1/0": "redis://host:1/0",
        "rediss://user:pass@host": "rediss://user@host",  # pragma: allowlist secret
        "redis://user@host": "redis://user@host",
        "redis://host": "redis://host",
    }.items():
        monkeypatch.setenv("FERRET_REDIS_URL", url)
        assert StoreSettings().redis_url == kept


@pytest.mark.parametrize(
    ("stores", "says"),
    [
        ({"redis_url": "host:6379"}, "redis_url\n.*must be redis://HOST:PORT, got 'host:6379'"),
        ({"redis_url": "redis://:p@host"}, "redis_url\n.*must hold no password; FERRET_REDIS_PASSWORD in the environment"),
        ({"s3_url": "http://host/bucket"}, "s3_url\n.*an address in S3 is s3://BUCKET/KEY"),
        ({"conversation_days": 0}, "conversation_days\n.*greater than 0"),
        ({"directroy": "x"}, "directroy\n.*not permitted"),
    ],
)
def test_what_is_wrong_is_named(stores, says):
    with pytest.raises(ValueError, match=rf"stores\.{says}"):
        PlatformSettings(stores=stores)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max_regions: 0", ["max_regions: must be greater than or equal to 1, got 0"]),
        ("max_regions: -1\nmax_turns: many", [
            "max_turns: must be a valid integer, unable to parse string as an integer, got 'many'",
            "max_regions: must be greater than or equal to 1, got -1",
        ]),
        ("remote_calls: some", ["remote_calls: must be 'any', 'tls' or 'none', got 'some'"]),
        ("models: {a: {pth: x}}", [
            "models.a.path: must be given",
            "models.a.pth: no such setting; there are path, dtype, image_encoder, region_sampler, llm_decoder",
        ]),
        ("models: {a: {path: x, llm_decoder: {tensor_parallel: 2, num_gpus: 1}}}", [
            "models.a.llm_decoder: num_gpus: must be 2 as tensor_parallel is, or 0 for CPUs, got 1",
        ]),
        ("stores: {directory: [x]}", ["stores.directory: Input is not a valid path"]),
        ("stores: {s3_url: x}", ["stores.s3_url: 'x': an address in S3 is s3://BUCKET/KEY"]),
        ("stores: {secret: hunter2}", ["stores.secret: no such setting; there are directory, "]),
        ("models: {}", ["models: Dictionary should have at least 1 item after validation, not 0"]),
        ("[1]", ["must hold settings by name"]),
        ("a: b: c", ["is not YAML: mapping values are not allowed here in"]),
    ],
)  # fmt: skip
def test_a_file_is_told_what_is_wrong_with_it(text, says, tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"bad\.yaml") as caught:
        PlatformSettings.load(file)
    lines = str(caught.value).split("\n")
    assert len(lines) == len(says)
    for line, expected in zip(lines, says, strict=True):
        assert line.startswith(f"{file}: {expected}")
        assert "hunter2" not in line


def test_a_variable_is_told_as_well(monkeypatch, tmp_path):
    monkeypatch.setenv("FERRET_CONVERSATION_DAYS", "week")
    (tmp_path / "good.yaml").write_text("stores: {cache_bytes: 1}")
    for file in (None, tmp_path / "good.yaml"):
        with pytest.raises(ValueError, match=r"^FERRET_CONVERSATION_DAYS: must be a valid number, .*, got 'week'$"):
            PlatformSettings.load(file)


def test_what_a_flag_says_is_not_blamed_on_the_file(tmp_path):
    (tmp_path / "good.yaml").write_text("models: {a: {path: b}}")
    with pytest.raises(ValueError, match=r"^models.x.path: must be a valid string, got 1$"):
        PlatformSettings.load(tmp_path / "good.yaml", models={"x": {"path": 1}})


def test_the_command_line_says_it_without_a_traceback(tmp_path):
    (tmp_path / "bad.yaml").write_text("max_regions: 0\nmax_turns: -1")
    environment = os.environ | {"FERRET_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [*FERRET, "up", "--config", str(tmp_path / "bad.yaml")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"ferret: {tmp_path}/bad.yaml: max_turns: must be greater than or equal to 0, got -1",
        f"{tmp_path}/bad.yaml: max_regions: must be greater than or equal to 1, got 0",
    ]
