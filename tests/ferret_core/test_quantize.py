"""Quantized checkpoints; all but the refusals need bitsandbytes, which is optional."""

import importlib.util
import json
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from ferret_core import cpu
from ferret_core.checkpoint.bundled import BUNDLED
from ferret_core.checkpoint.convert import convert
from ferret_core.checkpoint.inspection import inspect_checkpoint
from ferret_core.checkpoint.quantize import dequantize, has_8_bits, measure, quantize
from ferret_core.checkpoint.weights import by_name, stored_weights
from ferret_core.cli import app
from ferret_core.cpu import PackedLinear
from ferret_core.engine import Engine, EngineSettings, Prompt, SamplingParams
from ferret_core.engine.tensor_parallel import TensorParallelRunner
from ferret_core.model import FerretForConditionalGeneration, FerretProcessor

needs_bitsandbytes = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
MATRIX = "model.language_model.layers.0.mlp.up_proj.weight"
SCALES = {8: MATRIX.replace("weight", "SCB"), 4: f"{MATRIX}.absmax"}
PARAMS = SamplingParams(max_new_tokens=12)
PROMPTS = [Prompt((1, *range(start, start + 9))) for start in (5, 300, 900)]


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """The directory of a checkpoint of so many bits."""
    made = {}

    def of(bits):
        if bits not in made:
            made[bits] = quantize("playground", tmp_path_factory.mktemp("quantized") / f"int{bits}", bits=bits)
        return made[bits]

    return of


def load(path, dtype=torch.bfloat16):
    return FerretForConditionalGeneration.from_pretrained(str(path), dtype=dtype, parts=("decoder",)).eval()


def answers(engine):
    return [[delta.token_id for delta in engine.stream(prompt, PARAMS)] for prompt in PROMPTS]


def tokenizer():
    return FerretProcessor.from_pretrained(str(BUNDLED["playground"])).tokenizer


def test_without_bitsandbytes(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(RuntimeError, match=r"quantizing needs bitsandbytes: pip install 'ferret-platform\[quantize\]'"):
        quantize("playground", tmp_path / "out")


def test_the_original_layout_is_converted_first(golden, tmp_path):
    with pytest.raises(ValueError, match="convert it first"):
        quantize(golden / "checkpoints" / "ferret-tiny", tmp_path / "out")


def test_other_bits(tmp_path):
    with pytest.raises(ValueError, match="bits: must be 8 or 4, got 3"):
        quantize("playground", tmp_path / "out", bits=3)


@pytest.fixture
def source(tmp_path):
    """A copy of a checkpoint whose weights can be changed."""
    return Path(shutil.copytree(BUNDLED["playground"], tmp_path / "source"))


def change(path, weights):
    """Puts other weights into a checkpoint: by name, None for such as are to go."""
    state = load_file(path / "model.safetensors") | weights
    save_file({name: each for name, each in state.items() if each is not None}, path / "model.safetensors")


@pytest.mark.parametrize(("edit", "message"), [
    (lambda name, weight: None if name == MATRIX else weight, "up_proj.weight is missing"),
    (lambda name, weight: None if "vision_tower" in name else weight, "has no vision tower"),
    (lambda name, weight: weight * 0, "is a delta; add it to its base first"),
], ids=["half", "no tower", "delta"])  # fmt: skip
def test_a_source_that_is_no_whole_model(source, tmp_path, edit, message):
    state = load_file(source / "model.safetensors")
    change(source, {name: edit(name, weight) for name, weight in state.items()})
    with pytest.raises(ValueError, match=f"source: .*{message}"):
        quantize(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@needs_bitsandbytes
def test_an_output_that_is_there_is_refused_before_the_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(FerretForConditionalGeneration, "from_pretrained", None)
    with pytest.raises(ValueError, match="is there already"):
        quantize("playground", tmp_path)


@needs_bitsandbytes
@pytest.mark.parametrize("bits", [8, 4])
def test_values_are_near_and_the_rest_is_as_it_was(quantized, bits):
    path = quantized(bits)
    model = FerretForConditionalGeneration.from_pretrained(str(path))
    plain = FerretForConditionalGeneration.from_pretrained(str(BUNDLED["playground"])).state_dict()
    assert model.get_parameter(MATRIX).dtype in (torch.int8, torch.uint8)
    assert has_8_bits(model) == (bits == 8)
    dequantize(model)
    dequantize(model)  # there is nothing left to do
    assert not has_8_bits(model)
    expected = plain[MATRIX].float()
    largest = expected.abs().amax(1, keepdim=True) if bits == 8 else expected.view(-1, 64).abs().amax(1).view(len(expected), -1)
    if bits == 4:
        largest = largest.repeat_interleave(64, 1)
    step = largest / (127 if bits == 8 else 3.2)  # of NF4 the widest
    values = model.get_parameter(MATRIX).float()
    assert ((values - expected).abs() <= 0.51 * step + expected.abs() / 128).all()  # half a step, and bfloat16's rounding
    assert not torch.equal(values, expected)
    state = model.state_dict()
    assert state.keys() == plain.keys()
    changed = {name for name in state if not torch.equal(state[name], plain[name])}
    assert len(changed) == 6 * 7  # matrices of the decoder's layers
    assert all(name.startswith("model.language_model.layers.") for name in changed)


@needs_bitsandbytes
@pytest.mark.parametrize("bits", [8, 4])
def test_what_is_written_says_what_it_is(quantized, bits):
    path = quantized(bits)
    assert f"quantized to {bits} bits" in inspect_checkpoint(path).kind
    assert json.loads((path / "provenance.json").read_text())["command"] == f"ferret checkpoint quantize --bits {bits}"
    assert (path / "model.safetensors").stat().st_mode & 0o777 == 0o644
    model, before = (sum(weight.bytes for weight in stored_weights(each)) for each in (path, BUNDLED["playground"]))
    matrices = sum(weight.size for name, weight in by_name(stored_weights(BUNDLED["playground"])).items()
                   if "layers" in name and "language_model" in name and len(weight.shape) == 2)  # fmt: skip
    assert before - model == pytest.approx(matrices * (2 - bits / 8), rel=0.1)  # bfloat16's two bytes
    found, plain = inspect_checkpoint(path), inspect_checkpoint("playground")
    assert "complete" in str(found)
    counts, expected = (
        {part: values["parameters"] for part, values in each.to_json()["parts"].items()} for each in (found, plain)
    )
    assert counts == expected
    assert f"| decoder | {counts['decoder']:,} |" in (path / "README.md").read_text()
    assert sum(values["bytes"] for values in found.to_json()["parts"].values()) == model
    with pytest.raises(ValueError, match="is quantized; use the checkpoint that it was made from"):
        quantize(path, path.parent / "again")


@needs_bitsandbytes
@pytest.mark.parametrize(("bits", "name", "value", "problem"), [
    (8, MATRIX, None, f"{MATRIX} is missing"),
    (8, MATRIX, torch.zeros(768, 256), f"{MATRIX} is float32, and should be quantized"),
    (8, SCALES[8], None, f"{SCALES[8]} is missing"),
    (8, "lm_head.SCB", torch.zeros(2393), "lm_head.SCB is no weight of such a model"),
    (4, MATRIX, torch.zeros(9, 1, dtype=torch.uint8), f"{MATRIX} is (9, 1), and should be (98304, 1)"),
    (4, SCALES[4], None, f"{SCALES[4]} is missing"),
])  # fmt: skip
def test_what_would_not_load_is_said(quantized, tmp_path, bits, name, value, problem):
    path = Path(shutil.copytree(quantized(bits), tmp_path / "changed"))
    change(path, {name: value})
    assert inspect_checkpoint(path).problems == (problem,)
    assert CliRunner().invoke(app, ["checkpoint", "inspect", str(path)]).exit_code == 1


@needs_bitsandbytes
@pytest.mark.skipif(not cpu.available(), reason="needs AVX512-BF16, and a compiler when it was installed")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_kernels_compute_with_the_integers_of_the_file(source, tmp_path, dtype):
    """Where they run, 8 bits need no setting, whatever the type that they were made from."""
    generator = torch.Generator().manual_seed(0)
    state = {name: weight.to(dtype) for name, weight in load_file(source / "model.safetensors").items()}
    state[MATRIX] += (torch.randn(state[MATRIX].shape, generator=generator) / 1000).to(dtype)  # more bits than bfloat16 has
    change(source, state)
    settings = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(settings | {"dtype": str(dtype).removeprefix("torch.")}))
    path = quantize(source, tmp_path / "int8")
    model = load(path)
    engine = Engine.for_model(model, tokenizer(), EngineSettings(cache_tokens=256))
    layers = {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, PackedLinear)}
    assert [layer.precision for layer in layers.values()].count("int8") == 6 * 7 + 1
    stored = by_name(stored_weights(path))
    matrices = [name for name, weight in stored.items() if weight.dtype == torch.int8]
    assert len(matrices) == 6 * 7
    for name in matrices:
        packed, integers = layers[name], stored[name].read()
        scales = stored[name.removesuffix("weight") + "SCB"].read() / 127
        unpacked = packed.panels.view(-1, packed.in_features // 4, 64, 4).transpose(1, 2).reshape(-1, packed.in_features)
        assert torch.equal(unpacked[: len(integers)], integers)
        assert torch.equal(packed.sums[: len(integers)], integers.sum(1, dtype=torch.int32))
        assert torch.equal(packed.scales[: len(scales)], scales)
    found = answers(engine)
    assert answers(Engine.for_model(model, tokenizer(), EngineSettings(cache_tokens=256))) == found  # another for it
    if dtype == torch.bfloat16:
        same = Engine.for_model(load(source), tokenizer(), EngineSettings(cache_tokens=256, quantization="int8"))
        assert answers(same) == found


@needs_bitsandbytes
@pytest.mark.skipif(not cpu.available(), reason="needs AVX512-BF16, and a compiler when it was installed")
def test_kernels_take_integers_that_bitsandbytes_has_run(quantized):
    """Which then holds their scales elsewhere."""
    model, fresh = load(quantized(8)), load(quantized(8))
    model(torch.tensor([PROMPTS[0].token_ids]))
    assert model.get_submodule(MATRIX.removesuffix(".weight")).weight.SCB is None
    first, second = (Engine.for_model(each, tokenizer(), EngineSettings(cache_tokens=256)) for each in (model, fresh))
    assert answers(first) == answers(second)


@needs_bitsandbytes
def test_integers_are_packed_in_bfloat16_where_that_is_wanted(quantized):
    model, values = load(quantized(8)), load(quantized(8))
    dequantize(values)
    packed, expected = (PackedLinear(each.get_submodule(MATRIX.removesuffix(".weight"))) for each in (model, values))
    assert packed.precision == "bfloat16"
    torch.testing.assert_close(packed.panels, expected.panels, rtol=2**-8, atol=0)  # a last bit, of a product in another order


@needs_bitsandbytes
@pytest.mark.parametrize("bits", [8, 4])
def test_ranks_answer_as_one_process(quantized, bits):
    path, settings = quantized(bits), EngineSettings(cache_tokens=256)
    expected = answers(Engine.for_model(load(path, torch.float32), tokenizer(), settings))
    with TensorParallelRunner(partial(load, path, torch.float32), 2, settings.blocks, settings.block_size) as runner:
        assert answers(Engine(runner, tokenizer(), settings)) == expected


@needs_bitsandbytes
def test_the_command_line_compares_both(tmp_path):
    out = tmp_path / "int8"
    command = ["checkpoint", "quantize", "playground", "--output", str(out)]
    done = CliRunner().invoke(app, [*command, "--scenes", "2"])
    assert done.exit_code == 0, done.output
    head, _, before, after = done.stdout.strip().splitlines()[-4:]
    assert head.startswith("| checkpoint | MiB |")
    assert before.startswith("| playground | ")
    assert after.startswith("| int8 | ")


@needs_bitsandbytes
@pytest.mark.parametrize(("bits", "loss"), [(8, 0.05), (4, 0.15)])
def test_it_answers_nearly_as_well(quantized, bits, loss):
    before, after = measure("playground", 4), measure(quantized(bits), 4)
    assert after.bytes < 0.85 * before.bytes  # embeddings, tower and sampler are most of so small a model
    assert after.accuracy > before.accuracy - loss


@needs_bitsandbytes
def test_what_is_quantized_is_not_converted(quantized, tmp_path):
    with pytest.raises(ValueError, match="is quantized; use the checkpoint that it was made from"):
        convert(quantized(8), tmp_path / "out")
