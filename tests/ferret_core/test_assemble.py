"""A checkpoint put together from parts: every weight where it belongs, and nothing half-done left behind."""

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from ferret_core.checkpoint import shards as module
from ferret_core.checkpoint.assemble import assemble
from ferret_core.checkpoint.checksums import check_checksums
from ferret_core.checkpoint.inspection import inspect_checkpoint
from ferret_core.cli import app
from ferret_core.geometry import Box
from ferret_core.model import FerretForConditionalGeneration, FerretProcessor
from ferret_core.predictor import FerretPredictor
from ferret_core.prompt import REGION_TOKEN

VISION = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 336,
    "patch_size": 14,
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory, golden):
    """A Vicuna, a CLIP and a projector, tiny and random, in the layouts they are published in; and the models."""
    root = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    llama = LlamaForCausalLM(
        LlamaConfig(vocab_size=560, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    ).half()
    llama.save_pretrained(root / "vicuna")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(golden / "checkpoints" / "ferret-tiny" / name, root / "vicuna")
    clip = CLIPVisionModel(CLIPVisionConfig(**VISION)).eval()
    clip.save_pretrained(root / "clip")
    projector = {"model.mm_projector.weight": torch.randn(64, 48), "model.mm_projector.bias": torch.randn(64)}
    torch.save(projector, root / "mm_projector.bin")
    return root, llama, clip, projector


def tensors(directory):
    return {name: tensor for file in sorted(directory.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.fixture
def assembled(parts, tmp_path):
    root = parts[0]
    return assemble(root / "vicuna", root / "clip", tmp_path / "start", root / "mm_projector.bin")


def test_every_weight_is_where_it_belongs(parts, assembled):
    _, llama, clip, projector = parts
    model = FerretForConditionalGeneration.from_pretrained(str(assembled), dtype=torch.float32).eval()
    for name, tensor in llama.model.state_dict().items():
        ours = model.model.language_model.state_dict()[name]
        assert torch.equal(ours[: len(tensor)], tensor.float()), name
    for ours, theirs in ((model.model.language_model.embed_tokens, llama.model.embed_tokens), (model.lm_head, llama.lm_head)):
        assert ours.weight.shape == (561, 64)
        torch.testing.assert_close(ours.weight[560], theirs.weight.float().mean(0), atol=1e-4, rtol=0)
    assert torch.equal(model.model.multi_modal_projector.weight, projector["model.mm_projector.weight"])
    assert torch.equal(model.model.multi_modal_projector.bias, projector["model.mm_projector.bias"])
    pixels = torch.randn(1, 3, 336, 336)
    with torch.no_grad():
        expected = clip(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        torch.testing.assert_close(model.model.encode_images(pixels), expected, atol=1e-5, rtol=0)


def test_it_answers(assembled):
    predictor = FerretPredictor.from_pretrained(str(assembled))
    predictor.set_image(Image.new("RGB", (100, 80), "red"))
    assert predictor.ask("What is [region0]?", [Box(10, 10, 50, 50)], max_new_tokens=4).usage.completion_tokens == 4


def test_it_says_what_it_was_made_from(assembled):
    assert check_checksums(assembled) == []
    inputs = json.loads((assembled / "provenance.json").read_text())["inputs"]
    assert [each["name"] for each in inputs.values()] == ["vicuna", "clip", "mm_projector.bin"]
    assert inputs["projector"]["files"].keys() == {"mm_projector.bin"}
    assert "| region encoder |" in (assembled / "README.md").read_text()


def test_its_tokenizer_has_llamas_slow_semantics(assembled, golden):
    ours = FerretProcessor.from_pretrained(str(assembled)).tokenizer
    theirs = FerretProcessor.from_pretrained(str(golden / "checkpoints" / "ferret-tiny")).tokenizer
    assert type(ours) is type(theirs)
    for text in ("What is [12, 30] <region_fea>?", " two  spaces <region_fea>  and\nlines</s>USER: ", "ünïcode 世界"):
        assert ours(text).input_ids == theirs(text).input_ids
        assert ours.decode(ours(text).input_ids) == theirs.decode(theirs(text).input_ids)
    assert ours.convert_tokens_to_ids(REGION_TOKEN) == len(ours) - 1 == 560


def test_weights_keep_their_type_or_take_another(parts, assembled, tmp_path):
    types = {name: tensor.dtype for name, tensor in tensors(assembled).items()}
    assert types["lm_head.weight"] == torch.float16
    assert types["model.vision_tower.pre_layrnorm.weight"] == torch.float32
    root = parts[0]
    cast = assemble(root / "vicuna", root / "clip", tmp_path / "cast", root / "mm_projector.bin", dtype="bfloat16")
    assert {tensor.dtype for tensor in tensors(cast).values()} == {torch.bfloat16}
    assert json.loads((cast / "config.json").read_text())["dtype"] == "bfloat16"


def test_new_weights_are_a_function_of_the_seed(parts, tmp_path):
    root = parts[0]
    made = [tensors(assemble(root / "vicuna", root / "clip", tmp_path / str(i), seed=seed)) for i, seed in enumerate((1, 1, 2))]
    for name in ("model.region_encoder.flatten.weight", "model.multi_modal_projector.weight"):
        assert torch.equal(made[0][name], made[1][name])
        assert not torch.equal(made[0][name], made[2][name])
    state = torch.get_rng_state()
    assemble(root / "vicuna", root / "clip", tmp_path / "again")
    assert torch.equal(torch.get_rng_state(), state)


def test_pickles_and_a_whole_clip_will_do(parts, assembled, tmp_path):
    root, llama, clip, _ = parts
    shutil.copytree(root / "vicuna", tmp_path / "vicuna", ignore=shutil.ignore_patterns("*.safetensors"))
    state = llama.state_dict() | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}  # as old files have it
    names = sorted(state)
    for i, chosen in enumerate((names[::2], names[1::2])):
        torch.save({name: state[name] for name in chosen}, tmp_path / "vicuna" / f"pytorch_model-{i + 1:05}-of-00002.bin")
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    whole = CLIPModel(CLIPConfig(vision_config=VISION, text_config=text))
    whole.vision_model.load_state_dict({name.removeprefix("vision_model."): t for name, t in clip.state_dict().items()})
    whole.save_pretrained(tmp_path / "clip")
    again = assemble(tmp_path / "vicuna", tmp_path / "clip", tmp_path / "again", root / "mm_projector.bin")
    first, second = tensors(assembled), tensors(again)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_shards_and_their_index(parts, assembled, tmp_path, monkeypatch):
    root = parts[0]
    monkeypatch.setattr(module, "SHARD_BYTES", 100_000)
    sharded = assemble(root / "vicuna", root / "clip", tmp_path / "sharded", root / "mm_projector.bin")
    files = sorted(sharded.glob("*.safetensors"))
    assert len(files) > 3
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert all(file.stat().st_size < 150_000 or len(load_file(file)) == 1 for file in files)
    one, many = (FerretForConditionalGeneration.from_pretrained(str(path)).state_dict() for path in (assembled, sharded))
    assert all(torch.equal(one[name], many[name]) for name in one)


# ---- what is refused -------------------------------------------------------------------------------------------------


def broken(root, tmp_path, case):
    """Arguments of an assembly that cannot be done."""
    vicuna, clip, projector = tmp_path / "vicuna", tmp_path / "clip", tmp_path / "mm_projector.bin"
    shutil.copytree(root / "vicuna", vicuna)
    shutil.copytree(root / "clip", clip)
    shutil.copy(root / "mm_projector.bin", projector)
    match case:
        case "vocabulary":
            (vicuna / "tokenizer.model").unlink()
        case "config":
            (clip / "config.json").unlink()
        case "no weights":
            (vicuna / "model.safetensors").unlink()
        case "not a llama":
            (vicuna / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
        case "not a clip":
            (clip / "config.json").write_text(json.dumps({"model_type": "vit"}))
        case "no size":
            change = {"model_type": "llama", "vocab_size": 560, "hidden_size": "a"}
            (vicuna / "config.json").write_text(json.dumps(change))
        case "a list":
            (clip / "config.json").write_text("[]")
        case "two layers":
            torch.save({"model.mm_projector.0.weight": torch.ones(64, 48)}, projector)
        case "wide projector":
            torch.save({"model.mm_projector.weight": torch.ones(64, 99), "model.mm_projector.bias": torch.ones(64)}, projector)
        case "no projector":
            projector.unlink()
        case "taken":
            (tmp_path / "out").mkdir()
    return vicuna, clip, tmp_path / "out", projector


@pytest.mark.parametrize(("case", "message"), [
    ("vocabulary", r"decoder: .*vicuna has no tokenizer.model"),
    ("config", r"vision_tower: no config.json in .*clip"),
    ("no weights", r"the decoder is missing, all 21 weights of it"),
    ("not a llama", r"decoder: .* is a gpt2; must be a llama"),
    ("not a clip", r"vision_tower: .* is a vit; must be a CLIP"),
    ("no size", r"its configuration is wrong: .*hidden_size.* expected int, got str"),
    ("a list", r"clip/config.json: holds a list; must be a JSON object"),
    ("two layers", r"projector: .* has model.mm_projector.0.weight; must be one linear layer"),
    ("wide projector", r"model.multi_modal_projector.weight is \(64, 99\), and should be \(64, 48\)"),
    ("no projector", r"projector: no such file: .*mm_projector.bin"),
    ("taken", r"output: .*out is there already"),
])  # fmt: skip
def test_what_does_not_fit_together_is_refused(parts, tmp_path, case, message):
    arguments = broken(parts[0], tmp_path, case)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=message):
        assemble(*arguments)
    assert sorted(tmp_path.iterdir()) == before  # nothing half-done


# ---- inspection ------------------------------------------------------------------------------------------------------


def test_inspection_counts_without_loading(assembled, golden):
    found = inspect_checkpoint(assembled)
    model = FerretForConditionalGeneration.from_pretrained(str(assembled))
    assert sum(weight.size for weight in found.weights) == sum(p.numel() for p in model.parameters())
    parts = found.to_json()["parts"]
    assert parts["projector"] == {"parameters": 48 * 64 + 64, "bytes": 4 * (48 * 64 + 64), "dtypes": ["float32"]}
    assert parts["decoder"]["dtypes"] == ["float16"]
    assert "2 layers of 64, 561 tokens" in str(found)
    assert found.problems == ()
    assert inspect_checkpoint(golden / "checkpoints" / "ferret-tiny").problems == ()
    assert inspect_checkpoint("playground").problems == ()


def test_the_command_line(parts, tmp_path):
    root, output = parts[0], tmp_path / "start"
    run = CliRunner().invoke
    arguments = [
        "--decoder",
        root / "vicuna",
        "--vision-tower",
        root / "clip",
        "--output",
        output,
        "--projector",
        root / "mm_projector.bin",
    ]
    done = run(app, ["checkpoint", "assemble", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    assert f"wrote {output}" in done.output
    assert json.loads(run(app, ["checkpoint", "inspect", str(output), "--json"]).stdout)["problems"] == []
    assert "lm_head.weight  561 x 64  float16" in run(app, ["checkpoint", "inspect", str(output), "--tensors"]).stdout

    config = json.loads((output / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 3
    (output / "config.json").write_text(json.dumps(config))
    failed = run(app, ["checkpoint", "inspect", str(output)])
    assert failed.exit_code == 1
    assert "problem: model.language_model.layers.2.input_layernorm.weight is missing" in failed.stdout
