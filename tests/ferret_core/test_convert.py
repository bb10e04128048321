"""Checkpoints from layout to layout: nothing lost, nothing run, and no more in memory than a weight or two."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import weakref
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from ferret_core.checkpoint import shards
from ferret_core.checkpoint.assemble import assemble
from ferret_core.checkpoint.bundled import BUNDLED
from ferret_core.checkpoint.checksums import check_checksums
from ferret_core.checkpoint.convert import convert
from ferret_core.checkpoint.extract import extract
from ferret_core.checkpoint.inspection import inspect_checkpoint
from ferret_core.checkpoint.layouts import open_checkpoint
from ferret_core.checkpoint.lora import merge_lora
from ferret_core.checkpoint.original import as_original, original_config, our_name
from ferret_core.checkpoint.parts import expected_shapes
from ferret_core.checkpoint.shards import plan_shards, write_shards
from ferret_core.checkpoint.verify import compare
from ferret_core.checkpoint.weights import Weight, stored_weights
from ferret_core.cli import app
from ferret_core.geometry import Box
from ferret_core.model import FerretConfig, FerretForConditionalGeneration, FerretProcessor
from ferret_core.predictor import FerretPredictor
from tests import published


@pytest.fixture(scope="module")
def tiny(golden):
    return golden / "checkpoints" / "ferret-tiny"


@pytest.fixture(scope="module")
def ours(tiny, tmp_path_factory):
    return convert(tiny, tmp_path_factory.mktemp("converted") / "ours")


def unpickled(file):
    found = torch.load(file, weights_only=True)
    return {name: tensor for name, tensor in found.items() if not name.endswith(("inv_freq", "position_ids"))}


# ---- there and back --------------------------------------------------------------------------------------------------


def test_it_answers_as_before(tiny, ours):
    from PIL import Image

    answers = []
    for path in (tiny, ours):
        predictor = FerretPredictor.from_pretrained(str(path), dtype=torch.float32)
        predictor.set_image(Image.new("RGB", (100, 80), "red"))
        answers.append(predictor.ask("What is [region0]?", [Box(10, 10, 50, 50)], max_new_tokens=8).text)
    assert answers[0] == answers[1]
    assert FerretConfig.from_pretrained(str(ours)).transposed_region_points


def test_there_and_back_is_the_same(tiny, ours, tmp_path):
    back = convert(ours, tmp_path / "back", layout="original", format="bin")
    for file in ("pytorch_model.bin", "vision_tower/pytorch_model.bin"):
        before, after = unpickled(tiny / file), unpickled(back / file)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    for file in ("config.json", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert json.loads((back / file).read_text()) == json.loads((tiny / file).read_text())
    assert (back / "tokenizer.model").read_bytes() == (tiny / "tokenizer.model").read_bytes()
    assert compare(tiny, back).problems == compare(tiny, ours).problems == ()
    text = "two  spaces [12, 30] <region_fea>  and\nlines</s>USER: "
    assert len({tuple(FerretProcessor.from_pretrained(str(path)).token_ids(text)) for path in (tiny, ours, back)}) == 1


def test_the_adapter_variant(tiny, tmp_path):
    """`region_fea_adapter`: a linear layer in the sampler's place."""
    shutil.copytree(tiny, tmp_path / "adapter")
    settings = json.loads((tiny / "config.json").read_text()) | {"region_geo_sampler": False, "region_fea_adapter": True}
    (tmp_path / "adapter" / "config.json").write_text(json.dumps(settings))
    state = {name: each for name, each in unpickled(tiny / "pytorch_model.bin").items() if "sampler" not in name}
    state |= {"model.region_fea_adapter.weight": torch.ones(64, 48), "model.region_fea_adapter.bias": torch.ones(64)}
    torch.save(state, tmp_path / "adapter" / "pytorch_model.bin")
    made = convert(tmp_path / "adapter", tmp_path / "ours")
    assert FerretForConditionalGeneration.from_pretrained(str(made)).config.region_encoder == "mean_pool"
    back = convert(made, tmp_path / "back", layout="original")
    assert load_file(back / "model.safetensors").keys() == state.keys()


def test_a_checkpoint_that_never_was_original(tiny, ours, tmp_path):
    """As one that was trained on from ours: its configuration is made, its vocabulary given."""
    shutil.copytree(ours, tmp_path / "trained")
    shutil.rmtree(tmp_path / "trained" / "original")
    with pytest.raises(ValueError, match=r"tokenizer: .*has no tokenizer.model.*--tokenizer"):
        convert(tmp_path / "trained", tmp_path / "back", layout="original")
    back = convert(tmp_path / "trained", tmp_path / "back", layout="original", tokenizer=tiny)
    made, recorded = (json.loads((path / "config.json").read_text()) for path in (back, tiny))
    assert {name: value for name, value in made.items() if name in recorded and recorded[name] != value} == {}
    assert original_config(FerretConfig.from_pretrained(str(back))) == original_config(FerretConfig.from_pretrained(str(tiny)))


def test_types_shards_card_and_checksums(tiny, tmp_path):
    made = convert(tiny, tmp_path / "half", dtype="float16", shard_bytes=100_000)
    files = sorted(made.glob("*.safetensors"))
    assert len(files) > 3
    assert {tensor.dtype for file in files for tensor in load_file(file).values()} == {torch.float16}
    assert FerretConfig.from_pretrained(str(made)).dtype == torch.float16
    card = (made / "README.md").read_text()
    assert "| region encoder |" in card
    assert "`ferret-tiny`" in card
    inputs = json.loads((made / "provenance.json").read_text())["inputs"]["source"]["files"]
    assert inputs.keys() == {"pytorch_model.bin", "vision_tower/pytorch_model.bin"}
    assert check_checksums(made) == []
    subprocess.run(["sha256sum", "--quiet", "--check", "SHA256SUMS"], cwd=made, check=True)
    files[0].write_bytes(files[0].read_bytes()[:-1] + b"?")
    (made / "README.md").unlink()
    assert check_checksums(made) == ["README.md is missing", f"{files[0].name} has changed"]


def test_what_has_no_vision_tower_is_given_one(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "bare", ignore=shutil.ignore_patterns("vision_tower"))
    with pytest.raises(ValueError, match=r"bare: has no vision tower; name the CLIP .*--vision-tower"):
        convert(tmp_path / "bare", tmp_path / "ours")
    made = convert(tmp_path / "bare", tmp_path / "ours", vision_tower=tiny / "vision_tower")
    assert compare(made, tiny).problems == ()
    assert compare(made, tmp_path / "bare").problems == ()  # which has none to compare
    assert "without its vision tower: openai/clip" in inspect_checkpoint(tmp_path / "bare").kind


@pytest.mark.parametrize(("case", "message"), [
    ("stem", r"the original layout cannot express this model: sampler_points is \d+, there always 512.*conv_stem_vision"),
    ("pickles of ours", r"format: bin is for the original layout"),
    ("missing", r"source: .*: model.language_model.norm.weight is missing"),
    ("llama", r"broken: is a llama; must be a Ferret"),
    ("shard", r"names model-00002.safetensors, which is not there; download it again"),
    ("cut", r"model.safetensors: is no whole safetensors file .*; download it again"),
    ("taken", r"output: .*out is there already"),
])  # fmt: skip
def test_what_cannot_be_converted(ours, tmp_path, case, message):
    source, out, options = tmp_path / "broken", tmp_path / "out", {}
    shutil.copytree(ours, source)
    match case:
        case "stem":
            source, options = BUNDLED["playground"], {"layout": "original"}
        case "pickles of ours":
            options = {"format": "bin"}
        case "missing":
            state = load_file(source / "model.safetensors")
            del state["model.language_model.norm.weight"]
            save_file(state, source / "model.safetensors")
        case "llama":
            (source / "config.json").write_text(json.dumps({"model_type": "llama"}))
        case "shard":
            (source / "model.safetensors").rename(source / "model-00001.safetensors")
            places = {"a": "model-00001.safetensors", "b": "model-00002.safetensors"}
            (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
        case "cut":
            (source / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:-1000])
        case "taken":
            out.mkdir()
    with pytest.raises(ValueError, match=message):
        convert(source, out, **options)
    assert out.exists() == (case == "taken")


# ---- no code is run --------------------------------------------------------------------------------------------------


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


@pytest.mark.parametrize("kind", ["zip", "before torch 1.6", "plain pickle", "new pickle"])
def test_a_hostile_pickle_is_refused(tiny, tmp_path, kind):
    source, proof = tmp_path / "hostile", tmp_path / "proof"
    shutil.copytree(tiny, source)
    state = {"model.norm.weight": Hostile(proof), "lm_head.weight": torch.ones(2)}
    if "pickle" in kind:
        (source / "pytorch_model.bin").write_bytes(pickle.dumps(state, 2 if kind == "plain pickle" else 4))
    else:
        torch.save(state, source / "pytorch_model.bin", _use_new_zipfile_serialization=kind == "zip")
    why = "it is damaged, or holds more than tensors" if kind == "new pickle" else r"it would run (posix|nt)\.system"
    for action in (
        lambda: convert(source, tmp_path / "out"),
        lambda: inspect_checkpoint(source),
        lambda: compare(source, tiny),
        lambda: FerretForConditionalGeneration.from_pretrained(str(source)),
    ):
        with pytest.raises(ValueError, match=rf"pytorch_model.bin: refused: {why}. Nothing in it was run"):
            action()
    assert not proof.exists()
    assert not (tmp_path / "out").exists()
    os.system(f"touch {proof}")  # it would have worked
    assert proof.exists()


def test_other_pickles_that_are_no_weights(tmp_path):
    file = tmp_path / "pytorch_model.bin"
    for content, message in (
        ([torch.ones(2)], "holds a list; must hold tensors by name"),
        ({"epoch": 3}, "'epoch' is a int; must hold tensors by name and nothing else"),
    ):
        torch.save(content, file)
        with pytest.raises(ValueError, match=message):
            list(stored_weights(file))
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "no checkpoint")
    with pytest.raises(ValueError, match="cannot be read as a torch file"):
        list(stored_weights(file))


def test_a_pickle_from_before_torch_1_6(tiny, ours, tmp_path):
    shutil.copytree(tiny, tmp_path / "old")
    state = torch.load(tiny / "pytorch_model.bin", weights_only=True)
    torch.save(state, tmp_path / "old" / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert compare(tmp_path / "old", ours).problems == ()


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_no_weight_is_held_once_it_is_written(tiny, tmp_path, monkeypatch):
    """The bytes that are alive at any time, as each weight is read: those of this one and the one before, at most."""
    alive: list[weakref.ref] = []
    peak = largest = 0
    values = shards._values

    def counted(weight):
        nonlocal peak, largest
        tensor = values(weight)
        alive.append(weakref.ref(tensor))
        peak = max(peak, sum(each.nbytes for ref in alive if (each := ref()) is not None))
        largest = max(largest, tensor.nbytes)
        return tensor

    monkeypatch.setattr(shards, "_values", counted)
    convert(tiny, tmp_path / "ours", dtype="float16")
    assert len(alive) > 80
    assert peak <= 2 * largest


def test_a_large_file_is_converted_in_little_memory(tmp_path):
    """A gibibyte of weights, a hole in a file, written by a process that never has more of it in memory than some of them."""
    each, count = 16 * 2**20, 64
    source = tmp_path / "model.safetensors"
    published.sparse(source, {f"w{i}": ((each // 4,), torch.float32) for i in range(count)})
    code = (
        "import resource, sys, pathlib\n"
        "import torch\n"
        "from ferret_core.checkpoint.shards import write_shards\n"
        "from ferret_core.checkpoint.weights import stored_weights\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak()\n"
        "write_shards((w.cast(torch.float16) for w in stored_weights(sys.argv[1])), pathlib.Path(sys.argv[2]), 2**28)\n"
        "print(peak() - before)\n"
    )
    (tmp_path / "out").mkdir()
    done = subprocess.run([sys.executable, "-c", code, source, tmp_path / "out"], check=True, capture_output=True, text=True)
    assert sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors")) > each * count / 2
    assert int(done.stdout) < 8 * each
    shutil.rmtree(tmp_path / "out")


# ---- 7B and 13B ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "billions", "files"), [("7B", 7.1, 7), ("13B", 13.4, 13)])
def test_names_shapes_and_shards_of_the_published_sizes(tiny, tmp_path, size, billions, files):
    """A Ferret in the original layout, as large as the published ones: every name and shape is ours, in shards of 2 GiB."""
    source = tmp_path / "FERRET"
    theirs = published.ferret(tiny, source, *published.SIZES[size])
    checkpoint = open_checkpoint(source)
    expected = expected_shapes(checkpoint.config)
    shapes = {name: weight.shape for name, weight in checkpoint.weights.items()}
    assert shapes == {name: shape for name, shape in expected.items() if not name.startswith("model.vision_tower.")}
    assert round(sum(weight.size for weight in checkpoint.weights.values()) / 1e9, 1) == pytest.approx(billions, abs=0.35)
    plan = plan_shards(checkpoint.weights.values())
    assert len(plan) == pytest.approx(files, abs=1)
    assert next(iter(plan)) == f"model-00001-of-{len(plan):05}.safetensors"
    assert all(sum(weight.bytes for weight in shard) <= 2 * 2**30 for shard in plan.values())
    back = {each.name: each.shape for each in map(as_original, checkpoint.weights.values())}
    assert back == {name: shape for name, shape in theirs.items() if not name.endswith("inv_freq")}
    assert all(our_name(name) == name for name in expected)  # ours are not taken for theirs
    assert inspect_checkpoint(source).problems == ()


def test_weights_of_one_type_are_read_once_and_in_order(tmp_path):
    """Whatever their names and sizes: the workers of a run gather them one by one, all in the same order."""
    sizes, read = {"c": 3, "a": 40, "d": 1, "b": 2}, []

    def reader(name):
        return lambda: read.append(name) or torch.full((sizes[name],), float(len(read)))

    write_shards((Weight(name, (size,), torch.float32, reader(name)) for name, size in sizes.items()), tmp_path, 16)
    assert read == ["c", "a", "d", "b"]
    assert {weight.name: weight.read().tolist() for weight in stored_weights(tmp_path)} == {
        name: [float(i)] * sizes[name] for i, name in enumerate(read, 1)
    }


# ---- parts, adapters, comparisons ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_parts_alone(tiny, ours, tmp_path, suffix):
    projector, sampler = tmp_path / f"mm_projector.{suffix}", tmp_path / f"sampler.{suffix}"
    assert extract(ours, projector, ["projector"]) == 2
    assert extract(tiny, sampler, ["region_encoder"], "ferret") == 16
    found = {weight.name: weight.read() for weight in stored_weights(projector)}
    whole = unpickled(tiny / "pytorch_model.bin")
    assert found.keys() == {"model.mm_projector.weight", "model.mm_projector.bias"}
    assert all(torch.equal(tensor, whole[name]) for name, tensor in found.items())
    assert inspect_checkpoint(projector).kind == "parts of a model"
    assert all(weight.name.startswith("model.region_encoder.") for weight in stored_weights(sampler))
    (tmp_path / "vicuna").mkdir()
    llama = {name: each for name, each in whole.items() if not name.startswith(("model.mm", "model.region"))}
    llama |= {name: llama[name][:560].clone() for name in ("model.embed_tokens.weight", "lm_head.weight")}
    save_file(llama, tmp_path / "vicuna" / "model.safetensors")
    settings = json.loads((tiny / "config.json").read_text())
    kept = {name: each for name, each in settings.items() if not name.startswith(("mm_", "region", "im_"))}
    (tmp_path / "vicuna" / "config.json").write_text(json.dumps(kept | {"model_type": "llama", "vocab_size": 560}))
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(tiny / name, tmp_path / "vicuna")
    start = assemble(tmp_path / "vicuna", tiny / "vision_tower", tmp_path / "start", projector)  # what it is for
    assert compare(start, projector).problems[0].endswith(f"is in {start} only")
    assert torch.equal(
        FerretForConditionalGeneration.from_pretrained(str(start)).model.multi_modal_projector.weight,
        whole["model.mm_projector.weight"],
    )


@pytest.mark.parametrize(("trained_whole", "start"), [(False, True), (True, "orthogonal")])
def test_adapters_are_merged_as_peft_merges_them(ours, tiny, tmp_path, trained_whole, start):
    import peft

    torch.manual_seed(0)
    model = FerretForConditionalGeneration.from_pretrained(str(ours))
    layers = r"model\.language_model\.layers\..*_proj"
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=layers, init_lora_weights=start)
    adapted = peft.get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(tmp_path / "lora")
    expected = {name: each.clone() for name, each in adapted.merge_and_unload().state_dict().items()}
    if trained_whole:  # under LLaVA's names
        replaced = torch.full((64, 48), 0.5)
        torch.save({"base_model.model.model.mm_projector.weight": replaced}, tmp_path / "lora" / "non_lora_trainables.bin")
        expected["model.multi_modal_projector.weight"] = replaced
    made = merge_lora(tiny if trained_whole else ours, tmp_path / "lora", tmp_path / "merged", layout="ferret")
    read = json.loads((made / "provenance.json").read_text())["inputs"]["adapter"]["files"].keys()
    trained = {"non_lora_trainables.bin"} if trained_whole else set()
    assert read == {"adapter_config.json", "adapter_model.safetensors"} | trained
    state = FerretForConditionalGeneration.from_pretrained(str(made)).state_dict()
    assert not torch.equal(state["model.language_model.layers.0.mlp.up_proj.weight"], unadapted(ours))
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, atol=1e-6, rtol=0)

    settings = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(settings | {"use_dora": True}))
    with pytest.raises(ValueError, match="sets use_dora, which is not merged here"):
        merge_lora(ours, tmp_path / "lora", tmp_path / "again")
    with pytest.raises(ValueError, match=r"adapter: .*ours has no adapter_config.json"):
        merge_lora(ours, ours, tmp_path / "again")


def unadapted(directory):
    return load_file(directory / "model.safetensors")["model.language_model.layers.0.mlp.up_proj.weight"]


def test_adapters_of_another_model(tmp_path):
    adapter = tmp_path / "lora"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 8}))
    name = "base_model.model.model.layers.99.mlp.up_proj.lora_{}.weight"
    save_file(
        {name.format("A"): torch.ones(2, 64), name.format("B"): torch.ones(128, 2)}, adapter / "adapter_model.safetensors"
    )
    with pytest.raises(ValueError, match=r"adapts model.language_model.layers.99.mlp.up_proj.weight, which playground has not"):
        merge_lora("playground", adapter, tmp_path / "merged")
    save_file({name.format("A"): torch.ones(2, 64)}, adapter / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"has half an adapter of model.language_model.layers.99"):
        merge_lora("playground", adapter, tmp_path / "merged")


def test_comparison(ours, tiny, tmp_path):
    shutil.copytree(ours, tmp_path / "other")
    state = load_file(ours / "model.safetensors")
    state["lm_head.weight"][3, 5] += 0.25
    state["model.language_model.norm.weight"][0] = float("nan")
    save_file(state, tmp_path / "other" / "model.safetensors")
    found = compare(tiny, tmp_path / "other", 0.5)
    assert found.problems == ("model.language_model.norm.weight differs by inf",)
    found = compare(tiny, tmp_path / "other")
    assert found.weights == len(state)
    assert "lm_head.weight differs by 0.25" in found.problems
    assert compare(tmp_path / "other", tmp_path / "other").largest == 0  # what is no number is itself


def test_the_command_line(tiny, ours, tmp_path):
    run = CliRunner().invoke
    out = tmp_path / "out"
    done = run(app, ["checkpoint", "convert", str(ours), "--output", str(out), "--layout", "original", "--format", "bin"])
    assert done.exit_code == 0, done.output
    same = run(app, ["checkpoint", "verify", str(tiny), str(out)])
    assert same.exit_code == 0, same.output
    assert "equal: 9" in same.stdout
    assert run(app, ["checkpoint", "verify", str(out)]).exit_code == 0
    differs = run(app, ["checkpoint", "verify", "playground", str(out)])
    assert differs.exit_code == 1
    assert "only" in differs.stdout
    file = tmp_path / "mm_projector.bin"
    assert run(app, ["checkpoint", "extract", str(out), "--part", "projector", "--output", str(file)]).exit_code == 0
    assert "parts of a model" in run(app, ["checkpoint", "inspect", str(file)]).stdout
    shown = run(app, ["checkpoint", "inspect", str(out)]).stdout
    assert "a checkpoint in the original layout" in shown
    assert "complete: every weight" in shown
