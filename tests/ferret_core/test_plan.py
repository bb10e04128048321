"""The plan of a run: counted right, measured right, and refused with settings that really fit."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from ferret_core.checkpoint.bundled import BUNDLED
from ferret_core.checkpoint.parts import part_of
from ferret_core.data.files import write_records
from ferret_core.data.playground import playground_example
from ferret_core.model import FerretForConditionalGeneration
from ferret_core.model.packing import packed
from ferret_core.training import activations
from ferret_core.training.activations import Activations, measure_activations
from ferret_core.training.adapters import lora_parameters
from ferret_core.training.config import TrainConfig
from ferret_core.training.optimizer import MasterOptimizer
from ferret_core.training.plan import GIB, estimate_memory, make_plan

ROOT = Path(__file__).parents[2] / "ferret_core"
GIVEN = {"7b": "7b", "13b": "13b", "7b_lora": "7b"}  # configuration of the run: shape of the model


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def load(name, *overrides):
    shape = ROOT / "model" / "configs" / f"{GIVEN[name]}.json"
    return TrainConfig.load(ROOT / "training" / "configs" / f"ferret_{name}.yaml", [f"init={shape}", *overrides])


def tiny_run(init, *overrides, **changes):
    config = TrainConfig(output="-", init=str(init), task="playground", steps=5, batch_size=4, micro_batch_size=2, **changes)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, max_length=400))


@pytest.fixture
def tiny_init(tiny_config, tmp_path):
    tiny_config.save_pretrained(tmp_path / "init")
    return tmp_path / "init"


# ---- the ready configurations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GIVEN)
def test_the_papers_settings(name):
    config = load(name)
    assert (config.batch_size, config.epochs, config.data.max_length) == (128, 3, 2048)
    assert (config.schedule.name, config.schedule.warmup, config.optimizer.weight_decay) == ("cosine", 0.03, 0)
    assert config.optimizer.learning_rate == (2e-4 if "lora" in name else 2e-5)
    weights = {Path(source.path).stem: source.weight for source in config.data.sources}
    assert {stem: weight for stem, weight in weights.items() if weight != 1} == {
        "git_instruction": 3, "vg_relations": 0.2, "vg_regions": 0.2
    }  # fmt: skip
    assert "vision_tower" not in config.train


@pytest.mark.parametrize(("name", "trained", "frozen"), [
    ("7b", 6_738_423_808 + 44_069_900 + 4_198_400, 303_507_456),
    ("13b", 13_015_874_560 + 45_119_500 + 5_248_000, 303_507_456),
    ("7b_lora", 319_815_680 + 44_069_900 + 4_198_400, 6_738_423_808 + 303_507_456),
])  # fmt: skip
def test_plans_without_weights(name, trained, frozen):
    plan = make_plan(load(name))
    assert (sum(p.trained for p in plan.parts), sum(p.frozen for p in plan.parts)) == (trained, frozen)
    assert plan.memory.total < plan.available == load(name).gpu_memory * GIB
    assert (plan.accumulation, plan.pack_tokens) == (2, 8 * (2047 + 576))
    assert plan.steps is None  # the data is not here
    assert json.loads(json.dumps(plan.to_json()))["memory"]["total"] == plan.memory.total
    assert f"{trained:,}" in str(plan)


def test_a_checkpoint_and_the_weights_take_14_bytes_a_parameter():
    plan = make_plan(load("7b"))
    trained = sum(part.trained for part in plan.parts)
    assert plan.checkpoint + 2 * trained == 14 * trained


# ---- what does not fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "overrides"), [
    ("7b", ["strategy=ddp"]),
    ("7b", ["strategy=single", "workers=1"]),
    ("7b", ["activation_checkpointing=false"]),
    ("7b", ["gpu_memory=10"]),
    ("13b", ["gpu_memory=24"]),
    ("7b_lora", ["gpu_memory=10"]),
])  # fmt: skip
def test_refuses_what_cannot_fit_and_says_what_would(name, overrides):
    with pytest.raises(ValueError, match=r"each GPU would need [\d.]+ GiB and has [\d.]+ .*; these would fit:") as refusal:
        make_plan(load(name, *overrides))
    advice = re.findall(r"^  (.+)  \(([\d.]+) GiB\)$", str(refusal.value), re.MULTILINE)
    assert advice
    for settings, size in advice:
        plan = make_plan(load(name, *overrides, *settings.split()))
        assert f"{plan.memory.total / GIB:.1f}" == size


def test_refuses_a_model_for_which_nothing_helps():
    with pytest.raises(ValueError, match="no setting makes it fit: take more workers or larger GPUs"):
        make_plan(load("13b", "gpu_memory=4"))


def test_a_model_that_is_not_there():
    with pytest.raises(ValueError, match=r"init: no checkpoint at nowhere; make one with `ferret checkpoint assemble`"):
        make_plan(load("7b", "init=nowhere"))


# ---- what is counted is what there is --------------------------------------------------------------------------------


def test_deepspeeds_own_estimate_agrees(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    stage3 = pytest.importorskip("deepspeed.runtime.zero.stage3")
    stage2 = pytest.importorskip("deepspeed.runtime.zero.stage_1_and_2")
    count = 6_738_415_616
    none = Activations(kept=0, working=0)
    ours = {
        strategy: estimate_memory(count, 0, 8 * count, none, load("7b", f"strategy={strategy}"))
        for strategy in ("zero2", "zero3")
    }
    states = {strategy: each.weights + each.gradients + each.optimizer for strategy, each in ours.items()}
    _, theirs, largest = stage3.estimate_zero3_model_states_mem_needs(count, 131_072_000, 8, cpu_offload=False)
    assert states["zero3"] == pytest.approx(theirs - largest, abs=8)
    _, theirs = stage2.estimate_zero2_model_states_mem_needs(count, 8, cpu_offload=False)
    assert states["zero2"] == pytest.approx(theirs - 2 * count / 8, abs=8)  # bfloat16 gradients, which we count as a bucket


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_single_strategys_states_take_what_the_plan_says(tiny_model, tiny_init, name):
    config = tiny_run(tiny_init)
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, name=name, ema=0.9))
    for key, parameter in tiny_model.named_parameters():
        parameter.requires_grad_(part_of(key) in config.train)
        parameter.data = parameter.data.bfloat16()
    optimizer = MasterOptimizer(tiny_model, config.optimizer)
    for parameter in optimizer.parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.accumulate()
    optimizer.step(1.0)

    held = [value for key in optimizer.masters for value in optimizer.state(key).values()]
    plan = make_plan(config)
    assert plan.memory.optimizer == sum(each.nbytes for each in held) == plan.checkpoint
    assert plan.memory.gradients == optimizer.gradients.nbytes
    assert plan.memory.weights == sum(p.nbytes for p in tiny_model.parameters())


def test_adapters_are_counted_as_peft_counts_them(tiny_model):
    peft = pytest.importorskip("peft")
    count = lora_parameters(tiny_model, 4)
    targets = r"model\.language_model\.layers\..*_proj"
    adapted = peft.inject_adapter_in_model(peft.LoraConfig(r=4, target_modules=targets), tiny_model)
    assert count == sum(p.numel() for name, p in adapted.named_parameters() if ".lora_" in name) > 0


@pytest.mark.parametrize(
    "train", [("projector", "region_encoder", "decoder"), ("vision_tower", "projector", "region_encoder", "decoder")]
)
def test_activations_are_those_of_a_real_pass(tiny_config, tiny_init, train):
    """Against the allocator's own record of a forward and a backward pass."""
    config = tiny_run(tiny_init, train=train, precision="fp32")
    tiny_config.text_config.vocab_size, tiny_config.region_token_id = 64, 10  # or logits would take more than all else
    tiny_config.text_config.num_hidden_layers = 4
    with torch.device("meta"):
        shapes = FerretForConditionalGeneration(tiny_config)
    torch.manual_seed(0)
    model = FerretForConditionalGeneration(tiny_config)
    for each in (model, shapes):
        for name, parameter in each.named_parameters():
            parameter.requires_grad_(part_of(name) in train)
    measured = measure_activations(shapes, config)
    tiny_config.text_config._attn_implementation, tiny_config.vision_config._attn_implementation = "packed", "sdpa"

    samples, length, patches = config.micro_batch_size, config.data.max_length - 1, tiny_config.num_patches
    regions = activations.REGIONS_PER_SAMPLE
    text = torch.full((length,), 5)
    text[:regions] = tiny_config.region_token_id
    ids = torch.cat([torch.full((patches,), tiny_config.image_token_id), text]).repeat(samples)[None]
    side = tiny_config.vision_config.image_size
    pixels, points = torch.randn(samples, 3, side, side), torch.rand(samples * regions, tiny_config.sampler_points, 2)
    positions = torch.arange(patches + length).repeat(samples)[None]
    ends = torch.arange(samples + 1, dtype=torch.int32) * (patches + length)
    targets = torch.full((ids.shape[1],), 7)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        embeddings = model.model.embed_inputs(ids, pixels, points)
        hidden = model.model.language_model(
            inputs_embeds=embeddings, position_ids=positions, **packed(ends, int(ends.diff().max()))
        ).last_hidden_state
        loss, _ = model.lm_head(hidden[0], targets)
        loss.backward()
    live = peak = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    assert measured.kept + measured.working == pytest.approx(peak, rel=0.05)


def test_what_makes_activations_smaller(tiny_init):
    config = dataclasses.replace(tiny_run(tiny_init), gpu_memory=10_000)

    def size(**changes):
        return make_plan(dataclasses.replace(config, **changes)).memory.activations

    assert size(activation_checkpointing=True) < size()
    assert size(micro_batch_size=1) == pytest.approx(size() / 2, rel=0.1)
    assert size(train=("projector",)) < size()  # of frozen layers inputs need not be kept
    assert size(precision="bf16") < size(precision="fp32")


# ---- data ------------------------------------------------------------------------------------------------------------


def test_an_epoch_is_counted_and_its_tokens_estimated(tmp_path, playground_processor):
    records = [playground_example("train", i, 3).record for i in range(50)]
    for name, part in (("often", records[:10]), ("seldom", records[10:])):
        write_records(tmp_path / f"{name}.jsonl", part)
    config = TrainConfig.load(ROOT / "training" / "configs" / "ferret_7b.yaml", [
        f"init={BUNDLED['playground']}", "batch_size=16", "micro_batch_size=2", "epochs=2", "gpu_memory=80",
        f"data.sources=[{{path: {tmp_path}/often.jsonl, weight: 3}}, {{path: {tmp_path}/seldom.jsonl, weight: 0.2}}]",
    ])  # fmt: skip
    plan = make_plan(config)
    assert plan.data.samples == 3 * 10 + 8
    assert plan.steps == 5  # 2 x 38 samples, 16 a step
    text = plan.data.tokens / plan.data.samples - playground_processor.num_patches
    assert 150 < text < 500  # the system's text has about 100, and a question with its answer about 40
    cut = make_plan(dataclasses.replace(config, data=dataclasses.replace(config.data, max_length=100)))
    assert cut.data.tokens == plan.data.samples * (99 + playground_processor.num_patches)
    assert "an epoch: 38 samples" in str(plan)
    assert "2.11 epochs" in str(plan)
