"""Checkpoints that are hostile, damaged, tampered with, or another thing than they seem: told by name, nothing written."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from ferret_core.checkpoint import shards
from ferret_core.checkpoint.checksums import check_checksums
from ferret_core.checkpoint.convert import convert
from ferret_core.checkpoint.extract import extract
from ferret_core.checkpoint.inspection import inspect_checkpoint
from ferret_core.checkpoint.lora import merge_lora
from ferret_core.checkpoint.shards import write_pickle, write_safetensors
from ferret_core.checkpoint.verify import compare
from ferret_core.checkpoint.weights import stored_weights, weight_files
from ferret_core.model import FerretForConditionalGeneration
from ferret_core.predictor import FerretPredictor


@pytest.fixture(scope="module")
def tiny(golden):
    return golden / "checkpoints" / "ferret-tiny"


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    return convert(tiny, tmp_path_factory.mktemp("converted") / "ours")


@pytest.fixture
def ours(whole, tmp_path):
    """A checkpoint in our layout, to be broken."""
    return shutil.copytree(whole, tmp_path / "ours")


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


# ---- hostile ---------------------------------------------------------------------------------------------------------


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


def test_a_hostile_pickle_in_our_layout_is_refused(ours, tmp_path):
    (ours / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Hostile(tmp_path / "proof")}, ours / "pytorch_model.bin")
    for load in (FerretForConditionalGeneration.from_pretrained, FerretPredictor.from_pretrained, convert_to(tmp_path / "out")):
        with pytest.raises(ValueError, match=r"ours\S*: refused: it would run (posix|nt)\.system. Nothing in it was run"):
            load(str(ours))
    assert not (tmp_path / "proof").exists()


def test_a_hostile_vision_tower_is_refused(tiny, tmp_path):
    """In the directory that `mm_vision_tower` names."""
    source = shutil.copytree(tiny, tmp_path / "source")
    (source / "vision_tower").rename(tmp_path / "clip")
    torch.save({"pre_layrnorm.weight": Hostile(tmp_path / "proof")}, tmp_path / "clip" / "pytorch_model.bin")
    change(source / "config.json", mm_vision_tower=str(tmp_path / "clip"))
    with pytest.raises(ValueError, match=r"mm_vision_tower = \S*clip: refused: it would run (posix|nt)\.system"):
        FerretForConditionalGeneration.from_pretrained(str(source))
    assert not (tmp_path / "proof").exists()


def convert_to(output):
    return lambda source: convert(source, output)


# ---- damaged ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [
    b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", b"<!doctype html><html></html>", b"PK\x03\x04",
    b"\x80\x02", b"\x80\x02}q\x00.", b"\x80\x02R.",
])  # fmt: skip
def test_no_pickles(tmp_path, content):
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"pytorch_model.bin: .*[Dd]ownload it again"):
        list(stored_weights(file))


@pytest.mark.parametrize("tensor", [
    torch.ones(2, dtype=torch.complex64), torch.ones(2).to(torch.float8_e4m3fn), torch.ones(2).to_sparse(),
    torch.ones(2, device="meta"),
], ids=["complex", "float8", "sparse", "meta"])  # fmt: skip
def test_pickled_tensors_of_other_kinds(tmp_path, tensor):
    torch.save({"w": tensor}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin: w is of the type .*which is not supported|cannot be read"):
        list(stored_weights(tmp_path))


@pytest.mark.parametrize("content", ["{}", "[]", "null", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "{"])
def test_an_index_that_is_none(ours, content):
    (ours / "model.safetensors").rename(ours / "model-00001-of-00001.safetensors")
    (ours / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"model.safetensors.index.json: "):
        inspect_checkpoint(ours)


@pytest.mark.parametrize(("content", "message"), [
    ("[]", r"config.json: holds a list"), ("null", r"config.json: holds a NoneType"), ("{", r"config.json: is no JSON"),
    ({"mm_hidden_size": 48}, r"source: .*vocab_size must be a number, got None"),
    ({"mm_vision_tower": ["a"], "vocab_size": 561}, r"source: .*mm_vision_tower must be a name or a path, got \['a'\]"),
    ({"mm_vision_tower": "a", "vocab_size": 561, "hidden_size": "a"}, r"source: .*hidden_size.* expected int, got str"),
    ({"model_type": "ferret", "sampler_stages": 3}, r"source: its configuration is wrong"),
])  # fmt: skip
def test_a_configuration_that_is_none(tiny, tmp_path, content, message):
    source = shutil.copytree(tiny, tmp_path / "source")
    (source / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    for action in (inspect_checkpoint, lambda path: FerretPredictor.from_pretrained(str(path))):
        with pytest.raises(ValueError, match=message):
            action(source)


def test_the_file_that_is_served_is_the_one_that_is_looked_at(ours):
    """Transformers takes `model.safetensors` before an index."""
    state = load_file(ours / "model.safetensors")
    save_file({name: each + 1 for name, each in state.items()}, ours / "other.safetensors")
    (ours / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(state, "other.safetensors")}))
    assert weight_files(ours) == [ours / "model.safetensors"]
    loaded = FerretForConditionalGeneration.from_pretrained(str(ours)).state_dict()
    found = {weight.name: weight.read() for weight in stored_weights(ours)}
    assert all(torch.equal(loaded[name], found[name]) for name in found)


def test_a_pickle_that_cannot_be_mapped_is_read_once(tiny, tmp_path, monkeypatch):
    state = torch.load(tiny / "pytorch_model.bin", weights_only=True)
    torch.save(state, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    loads = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: loads.append(options) or load(*args, **options))
    assert all(torch.equal(weight.read(), state[weight.name]) for weight in stored_weights(tmp_path / "old.bin"))
    assert len(loads) == 2  # mapped, in vain; whole


# ---- another thing than it seems -------------------------------------------------------------------------------------


def without(directory, name):
    """The checkpoint without one of its weights."""
    (file,) = directory.glob("*.safetensors")
    weights = load_file(file)
    del weights[name]
    save_file(weights, file, metadata={"format": "pt"})


def test_a_model_that_lacks_weights_is_not_served(ours, tiny, tmp_path):
    missing = "model.language_model.layers.0.self_attn.q_proj.weight"
    without(ours, missing)
    with pytest.raises(ValueError, match=rf"ours: has no {missing} \(1 such weights\); see ferret checkpoint inspect"):
        FerretPredictor.from_pretrained(str(ours))
    theirs = convert(tiny, tmp_path / "theirs", layout="original")
    without(theirs, "model.layers.0.self_attn.q_proj.weight")
    with pytest.raises(ValueError, match=rf"theirs: has no {missing}"):
        FerretForConditionalGeneration.from_pretrained(theirs)


def test_a_delta_is_not_served(ours):
    weights = load_file(ours / "model.safetensors")
    weights["model.language_model.norm.weight"] *= 0.01
    save_file(weights, ours / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="ours: holds differences from a base"):
        FerretPredictor.from_pretrained(str(ours))


def test_another_model_is_not_served(ours):
    change(ours / "config.json", model_type="llama")
    with pytest.raises(ValueError, match="ours: its configuration is wrong: is a llama; must be a Ferret"):
        FerretPredictor.from_pretrained(str(ours))


def test_what_was_loaded_is_told_as_in_transformers(whole):
    model, info = FerretForConditionalGeneration.from_pretrained(whole, output_loading_info=True)
    assert isinstance(model, FerretForConditionalGeneration)
    assert not info["missing_keys"]


def test_values_that_a_type_cannot_hold(ours, tmp_path):
    weights = load_file(ours / "model.safetensors")
    weights["lm_head.weight"][0, 0] = 1e6
    save_file(weights, ours / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lm_head\.weight: has values that float16 cannot hold"):
        convert(ours, tmp_path / "out", dtype="float16")


def test_integers_are_no_weights(ours, tmp_path):
    state = load_file(ours / "model.safetensors")
    save_file(state | {"lm_head.weight": state["lm_head.weight"].to(torch.int64)}, ours / "model.safetensors")
    assert inspect_checkpoint(ours).problems == ("lm_head.weight is int64, and should be floating-point",)
    with pytest.raises(ValueError, match="should be floating-point"):
        convert(ours, tmp_path / "out")


def test_what_is_quantized(ours, tmp_path):
    change(ours / "config.json", quantization_config={"load_in_8bit": True})
    found = inspect_checkpoint(ours)
    assert "quantized" in found.kind
    assert "complete" not in str(found)
    for action in (
        lambda: convert(ours, tmp_path / "out"),
        lambda: extract(ours, tmp_path / "decoder.bin", ["decoder"]),
        lambda: merge_lora(ours, ours, tmp_path / "out"),
    ):
        with pytest.raises(ValueError, match="ours: is quantized; use the checkpoint that it was made from"):
            action()


@pytest.mark.parametrize(("values", "message"), [
    ({"transposed_region_points": False}, "transposed_region_points"),
    ({"sampler_neighbors": 12}, "sampler_neighbors is 12, there always 24"),
    ({"text_config": {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}}, "rope_parameters is .*1000000"),
])  # fmt: skip
def test_what_has_changed_since_must_be_something_that_the_original_layout_has(ours, tmp_path, values, message):
    settings = json.loads((ours / "config.json").read_text())
    change(ours / "config.json", **values | ({"text_config": settings["text_config"] | values.get("text_config", {})}))
    with pytest.raises(ValueError, match=f"the original layout cannot express this model: .*{message}"):
        convert(ours, tmp_path / "back", layout="original")


def test_what_has_changed_since_is_converted(ours, tiny, tmp_path):
    settings = json.loads((ours / "config.json").read_text())
    change(ours / "config.json", sampler_pooling="mean", text_config=settings["text_config"] | {"rms_norm_eps": 1e-5})
    made = json.loads((convert(ours, tmp_path / "back", layout="original") / "config.json").read_text())
    recorded = json.loads((tiny / "config.json").read_text())
    assert made == recorded | {"sampler_pooler_mode": "mean", "rms_norm_eps": 1e-5}


LORA = {"peft_type": "LORA", "lora_alpha": 8}


@pytest.mark.parametrize(("settings", "message"), [
    ([], "adapter_config.json: holds a list"),
    ({}, "must have a number for lora_alpha, got None"),
    (LORA | {"lora_alpha": "8"}, "must have a number for lora_alpha, got '8'"),
    (LORA | {"init_lora_weights": "pissa"}, "sets init_lora_weights to 'pissa'"),
    (LORA | {"init_lora_weights": "olora"}, "sets init_lora_weights to 'olora'"),
    (LORA | {"fan_in_fan_out": True}, "sets fan_in_fan_out"),
    (LORA | {"target_parameters": ["w"]}, "sets target_parameters"),
    (LORA, r"has several adapters of model.language_model.layers.0.mlp.up_proj.weight"),
])  # fmt: skip
def test_adapters_that_would_be_noise(tmp_path, settings, message):
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_A.{}.weight"
    save_file({name.format(each): torch.ones(2, 256) for each in ("default", "other")}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=message):
        merge_lora("playground", tmp_path, tmp_path / "merged")


def test_half_a_model_is_not_adapted(ours, tmp_path):
    state = load_file(ours / "model.safetensors")
    save_file({name: each for name, each in state.items() if "region_encoder" not in name}, ours / "model.safetensors")
    with pytest.raises(ValueError, match=r"base: .*ours: the region encoder is missing"):
        merge_lora(ours, tmp_path, tmp_path / "merged")


# ---- tampered with ---------------------------------------------------------------------------------------------------


def test_what_was_added_is_told(ours):
    (ours / "pytorch_model.bin").write_bytes(b"?")
    (ours / "original" / "more.txt").write_text("?")
    (ours / ".cache").mkdir()
    (ours / ".cache" / "left by a download").write_text("?")
    assert check_checksums(ours) == ["original/more.txt was added", "pytorch_model.bin was added"]


@pytest.mark.parametrize(("content", "message"), [("", "lists no file"), ("?\n", "line 1 is no checksum and name")])
def test_checksums_that_are_none(ours, content, message):
    (ours / "SHA256SUMS").write_text(content)
    with pytest.raises(ValueError, match=f"SHA256SUMS: {message}"):
        check_checksums(ours)


def test_what_does_not_exist(tmp_path):
    for action in (check_checksums, lambda path: compare(path, "playground")):
        with pytest.raises(ValueError, match="nothing: does not exist"):
            action(tmp_path / "nothing")


# ---- writing ---------------------------------------------------------------------------------------------------------


def test_a_part_that_is_named_twice_is_there_once(whole, tmp_path):
    assert extract(whole, tmp_path / "projector.safetensors", ["projector", "projector"]) == 2
    assert len(load_file(tmp_path / "projector.safetensors")) == 2
    weight = next(stored_weights(whole))
    for write in (write_safetensors, write_pickle):
        with (tmp_path / "twice").open("wb") as file, pytest.raises(ValueError, match="is there more than once"):
            write([weight, weight], file)


def test_a_link_that_leads_nowhere_is_no_free_place(whole, tmp_path):
    link = tmp_path / "link.bin"
    link.symlink_to(tmp_path / "nothing")
    for action in (lambda: convert(whole, link), lambda: extract(whole, link, ["projector"])):
        with pytest.raises(ValueError, match=r"link.bin is there already"):
            action()


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**20, 2**20, 0))
    with pytest.raises(OSError, match=r"output: needs 0\.\d GiB, and 0\.0 are free"):
        convert(whole, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_disk_that_is_full_after_all(whole):
    for write in (write_safetensors, write_pickle):
        with open("/dev/full", "wb", buffering=0) as file, pytest.raises(OSError, match=r"/dev/full: cannot be written"):
            write(stored_weights(whole), file)


def test_the_card_names_a_directory_that_was_called_by_a_dot(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(whole)
    made = convert(".", tmp_path / "again")
    assert "- source: `ours`" in (made / "README.md").read_text()


def test_sigterm_leaves_nothing_behind(tmp_path):
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from ferret_core.checkpoint import shards\n"
        "from ferret_core.cli import main\n"
        f"shards._values = lambda weight: Path({str(tmp_path / 'reading')!r}).touch() or time.sleep(60)\n"
        f"sys.argv = ['ferret', 'checkpoint', 'convert', 'playground', '--output', {str(tmp_path / 'out')!r}]\n"
        "main()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        while not (tmp_path / "reading").exists() and process.poll() is None:
            time.sleep(0.1)
        assert any(path.name.startswith(".out-") for path in tmp_path.iterdir())
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()
    assert [path.name for path in tmp_path.iterdir()] == ["reading"]
