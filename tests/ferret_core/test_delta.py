"""Deltas: the original's arithmetic to the last bit, and no base but the right one."""

import json
import math
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from ferret_core.checkpoint import delta as module
from ferret_core.checkpoint.delta import _impossible, apply_delta, make_delta
from ferret_core.checkpoint.inspection import inspect_checkpoint
from ferret_core.checkpoint.original import as_original
from ferret_core.checkpoint.verify import compare
from ferret_core.cli import app
from ferret_core.model import FerretForConditionalGeneration, FerretProcessor
from tests import published
from tests.conftest import GOLDEN

WORDS = ("model.embed_tokens.weight", "lm_head.weight")
UP = "model.layers.0.mlp.up_proj.weight"
RECORDED = ("vicuna-tiny", "delta-tiny", "applied-tiny")
with_recordings = pytest.mark.skipif(
    not all((GOLDEN / "checkpoints" / name).is_dir() for name in RECORDED), reason="needs the recorded deltas: FERRET_GOLDEN"
)


def read(directory):
    """All weights of a directory, under the names they have there."""
    found = {}
    for file in sorted(Path(directory).glob("*")):
        if file.suffix == ".safetensors":
            found |= load_file(file)
        elif file.suffix == ".bin":
            found |= torch.load(file, weights_only=True)
    return {name: tensor for name, tensor in found.items() if not name.endswith("inv_freq")}


@pytest.fixture(scope="module")
def target(golden):
    return golden / "checkpoints" / "ferret-tiny"


@pytest.fixture(scope="module")
def base(target, tmp_path_factory):
    """What the recorded model could have been trained from: the same but for a little, and without `<region_fea>`."""
    directory = tmp_path_factory.mktemp("bases") / "vicuna-tiny"
    directory.mkdir()
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, tensor in read(target).items():
        if "mm_projector" in name or "region_geo_sampler" in name:
            continue
        tensor = tensor[:560] if name in WORDS else tensor
        weights[name] = tensor + 0.03 * torch.randn(tensor.shape, generator=generator)
    save_file(weights, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return directory


@pytest.fixture(scope="module")
def delta(base, target, tmp_path_factory):
    return make_delta(base, target, tmp_path_factory.mktemp("deltas") / "delta")


def without_provenance(delta, tmp_path):
    """As deltas are published: nothing says what they were made from."""
    shutil.copytree(delta, tmp_path / "published")
    (tmp_path / "published" / "provenance.json").unlink()
    return tmp_path / "published"


def changed(base, tmp_path, change):
    """A base of which something is changed."""
    shutil.copytree(base, tmp_path / "other")
    weights = load_file(base / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "other" / "model.safetensors")
    return tmp_path / "other"


@with_recordings
def test_recorded_deltas_are_made_and_applied_to_the_last_bit(golden, tmp_path):
    base, delta, applied = (golden / "checkpoints" / name for name in RECORDED)
    ours = read(apply_delta(base, delta, tmp_path / "applied"))
    theirs = read(applied)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    ours, theirs = read(make_delta(base, golden / "checkpoints" / "ferret-tiny", tmp_path / "delta")), read(delta)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_all_arithmetic_is_in_half_precision(base, target, delta, tmp_path):
    made, applied = read(delta), read(apply_delta(base, delta, tmp_path / "applied"))
    theirs, start = read(target), read(base)
    assert made.keys() == applied.keys() == theirs.keys()
    for name, tensor in theirs.items():
        expected = tensor.half()
        if name in start:
            rows = len(start[name])
            expected[:rows] -= start[name].half()
        assert torch.equal(made[name], expected), name
        if name in start:
            expected[:rows] += start[name].half()
        assert torch.equal(applied[name], expected), name
        torch.testing.assert_close(applied[name], tensor.half(), atol=1e-3, rtol=0)


def test_what_comes_out_loads_with_the_deltas_tokenizer(base, delta, target, tmp_path):
    applied = apply_delta(base, delta, tmp_path / "ours", layout="ferret", vision_tower=target / "vision_tower")
    model = FerretForConditionalGeneration.from_pretrained(str(applied))
    assert model.config.region_token_id == 560
    assert model.dtype == torch.float16
    text = "What is [12, 30] <region_fea>?"
    ids = [FerretProcessor.from_pretrained(str(path)).token_ids(text) for path in (applied, target)]
    assert ids[0] == ids[1]
    assert compare(applied, target, 2e-3).problems == ()


def test_exactly_in_float32(base, target, delta, tmp_path):
    exact = apply_delta(base, make_delta(base, target, tmp_path / "delta", exact=True), tmp_path / "a", exact=True)
    assert compare(exact, target).largest < 1e-6
    rounded_once = read(apply_delta(base, delta, tmp_path / "b", exact=True))
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(rounded_once[name], read(delta)[name].float() + read(base)[name].half().float())


def test_a_model_of_our_layout_has_a_delta_as_well(base, target, tmp_path):
    from ferret_core.checkpoint.convert import convert

    ours = convert(target, tmp_path / "ours")
    delta = make_delta(base, ours, tmp_path / "delta")
    assert compare(apply_delta(base, delta, tmp_path / "applied"), ours, 2e-3).problems == ()


def scaled(name):
    def change(weights):
        weights[name] = weights[name] * 1.01

    return change


def dropped(weights):
    del weights["model.layers.1.mlp.up_proj.weight"]


def narrowed(weights):
    weights["model.layers.0.mlp.up_proj.weight"] = weights["model.layers.0.mlp.up_proj.weight"][:, :32].contiguous()


def deeper(weights):
    weights["model.layers.2.mlp.up_proj.weight"] = weights["model.layers.1.mlp.up_proj.weight"].clone()


@pytest.mark.parametrize(("change", "message"), [
    (scaled("model.layers.1.mlp.up_proj.weight"), r"other is not what .* was made from: its model.layers.1.mlp.up_proj.weight"),
    (scaled("model.embed_tokens.weight"), r"other is not what .* was made from: its model.embed_tokens.weight is another"),
    (dropped, r"base: .*other has no model.layers.1.mlp.up_proj.weight"),
    (narrowed, r"base: .*other is a model of another size: its model.layers.0.mlp.up_proj.weight is \(128, 32\)"),
    (deeper, r"delta: .* has no model.layers.2.mlp.up_proj.weight"),
])  # fmt: skip
def test_a_wrong_base_is_refused_though_nothing_says_which_is_right(base, delta, tmp_path, change, message):
    published, other = without_provenance(delta, tmp_path), changed(base, tmp_path, change)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=message):
        apply_delta(other, published, tmp_path / "applied")
    assert sorted(tmp_path.iterdir()) == before  # nothing half-done


def test_the_right_base_is_never_refused(base, delta, target, tmp_path):
    """Nor is the same one in half precision, as it is published; and a refusal can be overridden."""
    published = without_provenance(delta, tmp_path)
    half = changed(base, tmp_path, lambda weights: weights.update({name: each.half() for name, each in weights.items()}))
    one, two = apply_delta(base, published, tmp_path / "one"), apply_delta(half, published, tmp_path / "two")
    assert compare(one, two).problems == ()
    shutil.rmtree(half)
    other = changed(base, tmp_path, scaled("lm_head.weight"))
    assert compare(one, apply_delta(other, published, tmp_path / "three", check=False), 0.1).weights == 39


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_no_sum_with_the_right_base_is_impossible(dtype):
    """Over all magnitudes, relatives and strangers, the smallest numbers among them: the lemma that refusals rest on."""
    generator = torch.Generator().manual_seed(0)
    uniform, normal = (partial(draw, 500_000, generator=generator) for draw in (torch.rand, torch.randn))
    base = (normal() * 10 ** (12 * uniform() - 8)).to(dtype)
    related = base.float() * (1 + normal() * 10 ** (-4 * uniform()))
    target = torch.where(uniform() < 0.5, related, normal() * 10 ** (12 * uniform() - 8)).to(dtype)
    change = target - base
    finite = change.isfinite() & base.isfinite()
    assert _impossible(change[finite], base[finite]) == 0
    other = (base.float() * (1 + 0.01 * normal())).to(dtype)
    finite &= other.isfinite()
    assert _impossible(change[finite], other[finite]) > 1000


def test_a_relative_of_the_base_is_named_by_checksum(base, delta, tmp_path):
    def nearly(weights):
        weights["model.norm.weight"][0] += 0.01

    with pytest.raises(ValueError, match=r"its model.norm.weight is another.* Give vicuna-tiny, of exactly"):
        apply_delta(changed(base, tmp_path, nearly), delta, tmp_path / "applied")


@pytest.mark.parametrize("size", ["7B", "13B"])
def test_names_and_shapes_of_the_published_sizes(target, tmp_path, monkeypatch, size):
    """What would be written, of sparse files as large as theirs: all of the delta's weights, in its type, none read."""
    shapes = published.ferret(target, tmp_path / "delta", *published.SIZES[size])
    published.vicuna(tmp_path / "base", *published.SIZES[size][:3])
    monkeypatch.setattr(module, "write_checkpoint", lambda checkpoint, output, **_: checkpoint)
    made = apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "out")
    written = {each.name: each for each in map(as_original, made.weights.values())}
    assert {name: each.shape for name, each in written.items()} == {
        name: shape for name, shape in shapes.items() if not name.endswith("inv_freq")
    }
    assert {each.dtype for each in written.values()} == {torch.float16}
    assert made.weights["model.language_model.norm.weight"].read().unique().tolist() == [1]


def test_little_memory(target, tmp_path):
    """Two layers as wide as the 7B's: 1.9 GB are read, 1 GB written; in memory are three weights at most, and some blocks."""
    width, inner, _, heads = published.SIZES["7B"]
    shapes = published.ferret(target, tmp_path / "delta", width, inner, 2, heads, 8001)
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        shutil.copy(target / name, tmp_path / "delta")
    published.vicuna(tmp_path / "base", width, inner, 2, 8000)
    code = (
        "import resource, sys\n"
        "from ferret_core.checkpoint.delta import apply_delta\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak()\n"
        "apply_delta(*sys.argv[1:], shard_bytes=2**29)\n"
        "print(peak() - before)\n"
    )
    paths = [tmp_path / name for name in ("base", "delta", "out")]
    done = subprocess.run([sys.executable, "-c", code, *paths], check=True, capture_output=True, text=True)
    written = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    shutil.rmtree(tmp_path / "out")
    largest = 2 * max(math.prod(shape) for shape in shapes.values())
    assert int(done.stdout) < 3 * largest + 2**29 < written


def test_sides_that_are_exchanged(base, delta, target, tmp_path):
    with pytest.raises(ValueError, match=r"delta: .*ferret-tiny is a whole model"):
        apply_delta(base, target, tmp_path / "applied")
    with pytest.raises(ValueError, match=r"base: .*delta is a delta itself"):
        apply_delta(delta, delta, tmp_path / "applied")
    with pytest.raises(ValueError, match=r"target: .*delta is a delta; add it to its base first"):
        make_delta(base, delta, tmp_path / "again")
    with pytest.raises(ValueError, match=r"base: .*images has no weights of a LLaMA"):
        apply_delta(target.parent.parent / "images", delta, tmp_path / "applied")


def test_what_is_made_must_be_whole(base, delta, tmp_path):
    """A delta that lost its sampler; and adapters, onto a delta."""
    from ferret_core.checkpoint.lora import merge_lora

    lost = shutil.copytree(delta, tmp_path / "lost")
    state = {name: each for name, each in load_file(delta / "model.safetensors").items() if "sampler" not in name}
    save_file(state, lost / "model.safetensors")
    with pytest.raises(ValueError, match=r"delta: .*lost: the region encoder is missing"):
        apply_delta(base, lost, tmp_path / "applied")
    with pytest.raises(ValueError, match=r"base: .*delta is a delta; add it to its base first"):
        merge_lora(delta, tmp_path, tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["lost"]


def test_inspection_knows_a_delta(delta):
    found = inspect_checkpoint(delta)
    assert "a delta" in found.kind
    assert "its base is vicuna-tiny" in found.kind
    assert found.problems == ()


def test_inspection_knows_a_base(base):
    found = inspect_checkpoint(base)
    assert found.kind.startswith("a llama: parts of a model")
    assert found.problems == ()


def test_the_command_line(base, target, tmp_path):
    run = CliRunner().invoke
    made = run(app, ["checkpoint", "delta", "make", str(base), str(target), "--output", str(tmp_path / "delta")])
    assert made.exit_code == 0, made.output
    applied = ["checkpoint", "delta", "apply", str(base), str(tmp_path / "delta"), "--output", str(tmp_path / "applied")]
    done = run(app, [*applied, "--format", "bin"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "applied" / "pytorch_model.bin").is_file()
    inputs = json.loads((tmp_path / "applied" / "provenance.json").read_text())["inputs"]
    assert inputs["base"]["files"].keys() == {"model.safetensors"}


def cut(weights):
    weights.update({name: weights[name][:300].clone() for name in WORDS})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda weights: weights[UP].fill_(math.nan), "is not what .* was made from"),
        (lambda weights: weights[UP][0, 0].fill_(1e6), "is not what .* was made from"),
        (lambda weights: weights[UP].zero_(), f"has only zeros in its {UP}"),
        (cut, "knows 300 words, and must know 5"),
    ],
)
def test_a_damaged_base_is_refused(base, delta, tmp_path, damage, message):
    broken = shutil.copytree(base, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    damage(weights)
    save_file(weights, broken / "model.safetensors")
    (published_delta := shutil.copytree(delta, tmp_path / "delta")).joinpath("provenance.json").unlink()  # without digests
    with pytest.raises(ValueError, match=message):
        apply_delta(broken, published_delta, tmp_path / "out")
    assert not (tmp_path / "out").exists()
