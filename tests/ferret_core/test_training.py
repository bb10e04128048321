"""Training: labels where they belong, a loop that learns, and a stop that costs nothing."""

import json
import math
import os
import signal
from itertools import chain
from pathlib import Path

import pytest
import torch

from ferret_core.data.playground import THINGS, playground_example
from ferret_core.data.samples import pack, pad
from ferret_core.model import FerretForConditionalGeneration
from ferret_core.model.modeling import IGNORE_INDEX
from ferret_core.predictor import FerretPredictor
from ferret_core.training import config as config_module
from ferret_core.training.batches import MicroBatchSampler, deal, share
from ferret_core.training.config import TrainConfig, describe
from ferret_core.training.loop import train
from ferret_core.training.number_code import initialize_numbers, number_code
from ferret_core.training.optimizer import MasterOptimizer
from ferret_core.training.playground import ConversationDataset, build_playground_sample
from ferret_core.training.schedule import learning_rate_factor
from ferret_core.training.stop import Stopped, StopSignal
from ferret_core.training.tasks import InstructTask
from tests.training import difference, losses, settings, weights


def sample_of(index, processor, turns=6, max_length=2048):
    return build_playground_sample(playground_example("train", index, turns), processor, max_length)


# ---- samples and batches -------------------------------------------------------------------------------------------


def test_labels_are_the_answers(playground_processor):
    for index in range(5):
        example = playground_example("train", index)
        sample = build_playground_sample(example, playground_processor, 2048)
        decode = playground_processor.tokenizer.decode
        runs, run = [], []
        for label in [*sample.labels.tolist(), IGNORE_INDEX]:
            if label != IGNORE_INDEX:
                run.append(label)
            elif run:
                runs.append(decode(run))
                run = []
        assert len(runs) == len(example.record.turns)
        for text, turn in zip(runs, example.record.turns, strict=True):
            assert text.endswith(".</s>")
            assert text.split(" [")[0].startswith(" " + turn.answer.split(" [")[0].rstrip("."))
        kept = sample.labels != IGNORE_INDEX
        assert torch.equal(sample.labels[kept], sample.input_ids[kept])
        regions = (sample.input_ids == playground_processor.tokenizer.convert_tokens_to_ids("<region_fea>")).sum()
        assert len(sample.region_points) == regions


def test_long_playground_conversations_lose_their_last_turns(playground_processor):
    whole = sample_of(0, playground_processor, 8)
    short = sample_of(0, playground_processor, 8, len(whole.input_ids) - 1)
    assert torch.equal(short.input_ids, whole.input_ids[: len(short.input_ids)])
    assert short.input_ids[-1] == playground_processor.tokenizer.eos_token_id
    with pytest.raises(ValueError, match=r"longer than data.max_length = 290"):
        sample_of(0, playground_processor, 8, 290)


def test_hints_point_at_what_is_meant(playground_processor):
    """Names look at patches that show such a thing, or at the start, what is before a box at its name, what writes an object
    at its patches."""
    last_words = [thing.name.split()[-1] for thing in THINGS]
    unique = [thing for thing in THINGS if last_words.count(thing.name.split()[-1]) == 1]
    names = {playground_processor.tokenizer(f" {thing.name}").input_ids[-1]: thing for thing in unique}
    image = playground_processor.image_token_id
    seen = dict.fromkeys(("present", "absent", "mention", "number", "word"), 0)
    for index in range(12):
        example = playground_example("train", index, 6)
        sample = build_playground_sample(example, playground_processor, 2048)
        things = {o.thing for o in example.scene.objects}
        ids = sample.input_ids
        for token, targets in zip(sample.looks["name"].tokens, sample.looks["name"].targets, strict=True):
            thing = names.get(int(ids[token]))
            if thing in things:
                assert (ids[targets] == image).all()
                seen["present"] += 1
            elif thing:
                assert targets.nonzero().flatten().tolist() == [0]
                seen["absent"] += 1
        for token, targets in zip(sample.looks["mention"].tokens, sample.looks["mention"].targets, strict=True):
            assert (ids[targets] != image).all()
            assert targets.nonzero().max() <= token
            seen["mention"] += 1
        for token, targets in zip(sample.looks["object"].tokens, sample.looks["object"].targets, strict=True):
            assert (ids[targets] == image).all()
            written = playground_processor.tokenizer.decode(ids[token + 1]).strip()
            if int(ids[token + 1]) in names and not written.endswith("s"):
                named = playground_processor.tokenizer(f" {names[int(ids[token + 1])].name}").input_ids[1]
                assert (sample.patch_names[targets[ids == image]] == named).all()
                seen["word"] += 1
            seen["number"] += written.isdecimal()
    assert all(seen.values())


def test_packed_equals_padded_and_apart(tiny_model, tiny_processor, run_values):
    """The same loss and gradients whether samples stand in one row, in rows of one length, or alone; none sees another."""
    samples = [sample_of(i, tiny_processor, 1 + i) for i in range(3)]
    task = InstructTask(tiny_model, tiny_processor, settings(run_values))
    tiny_model.model.language_model.config._attn_implementation = "packed"

    def gradients(loss):
        tiny_model.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in tiny_model.named_parameters() if p.grad is not None}

    loss, _ = task(pack(samples), {"answers": 1.0})
    packed = gradients(loss)
    alone = sum(task(pack([sample]), {"answers": 1.0})[0] for sample in samples)
    assert difference(packed, gradients(alone)) < 1e-3
    torch.testing.assert_close(loss, alone)

    tiny_model.model.language_model.config._attn_implementation = "sdpa"
    batch = pad(samples)
    count = sum(int((sample.labels != IGNORE_INDEX).sum()) for sample in samples)
    names = ("input_ids", "labels", "attention_mask", "pixel_values", "region_points")
    padded = tiny_model(**{name: batch[name] for name in names if name in batch}).loss * count
    torch.testing.assert_close(padded, loss)
    assert difference(packed, gradients(padded)) < 1e-3


def test_a_batch_without_image_or_region_reaches_every_part(tiny_model, tiny_processor, run_values):
    """Otherwise workers that have such a batch would wait for each other."""
    task = InstructTask(tiny_model, tiny_processor, settings(run_values))
    tiny_model.model.language_model.config._attn_implementation = "packed"
    sample = sample_of(0, tiny_processor)
    text = sample.input_ids[: int((sample.input_ids == tiny_processor.image_token_id).nonzero()[0])]
    bare = type(sample)(
        input_ids=text, labels=text, pixel_values=sample.pixel_values[:0], region_points=sample.region_points[:0],
        patch_names=sample.patch_names, region_names=sample.region_names, looks={},
    )  # fmt: skip
    loss, _ = task(pack([bare]), {"answers": 1.0})
    loss.backward()
    used = tiny_model.config.vision_feature_layer % (tiny_model.config.vision_config.num_hidden_layers + 1)
    for name, parameter in tiny_model.named_parameters():
        if "post_layernorm" not in name and f"layers.{used}." not in name:
            assert parameter.grad is not None, name
            if "vision_tower" in name or "region_encoder" in name:
                assert not parameter.grad.any(), name


def test_micro_batches_are_balanced_and_the_same_for_any_number_of_workers(run_values):
    lengths = [5, 1, 9, 2, 7, 3, 8, 4, 6, 10, 12, 11]
    micro_batches = deal(range(12), 3, lengths.__getitem__)
    assert sorted(chain(*micro_batches)) == list(range(12))
    totals = [sum(lengths[i] for i in each) for each in micro_batches]
    assert max(totals) - min(totals) <= 3
    config = settings(run_values, batch_size=12, micro_batch_size=3)
    for world in (1, 2, 3, 5):
        samplers = [list(MicroBatchSampler(config, 2, 0, rank, world, lambda g: lengths[g % 12])) for rank in range(world)]
        for step in range(2):
            shares = [share(range(4), rank, world) for rank in range(world)]
            (count,) = {len(each) for each in shares}  # all wait for each other as often
            done = [
                samplers[rank][step * count + turn] for turn in range(count) for rank in range(world) if shares[rank][turn][1]
            ]
            assert sorted(chain(*done)) == list(range(step * 12, step * 12 + 12))
            assert done == deal(range(step * 12, step * 12 + 12), 3, lambda g: lengths[g % 12])


# ---- the loop ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["playground", "playground_dense"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_runs_and_leaves_a_model_that_serves(run_values, tmp_path, task, precision):
    changes = {"task": task, "precision": precision, "playground__name_weight": 0.5, "optimizer__name": "muon"}
    directory = train(settings(run_values, **changes, data__workers=1))
    model = FerretForConditionalGeneration.from_pretrained(directory)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    assert all(p.dtype == dtype and p.isfinite().all() for p in model.parameters())
    run = tmp_path / "run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"validation_loss", "loss", "gradient_norm", "learning_rate", "tokens_per_second"} <= {
        key for line in lines for key in line
    }
    assert len(losses(run)) == 6
    assert (run / "curves.png").stat().st_size > 5000
    assert list((run / "tensorboard").iterdir())
    assert TrainConfig.load(run / "config.yaml").steps == 6
    predictor = FerretPredictor.from_pretrained(directory)
    predictor.set_image(playground_example("test", 0).image)
    assert predictor.ask("What do you see?", max_new_tokens=3).text is not None


def test_learns_one_batch_by_heart(run_values, tmp_path, monkeypatch, playground_processor):
    """Loss falls when the same scene comes again and again, hints and all."""
    ask = ConversationDataset.__getitem__
    monkeypatch.setattr(ConversationDataset, "__getitem__", lambda self, _: ask(self, 0))
    changes = {
        "steps": 40,
        "eval_steps": 40,
        "playground__look_weight": 0.2,
        "optimizer__learning_rate": 3e-3,
        "schedule__name": "trapezoid",
    }
    # The hints are for four layers; the tiny model has two.
    monkeypatch.setattr("ferret_core.training.playground.LOOKING_LAYERS", {"name": 0, "mention": 1, "number": 1})
    train(settings(run_values, **changes))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[38]["answers_loss"] < 0.7 * lines[0]["answers_loss"]
    assert lines[38]["name_share"] > 2 * lines[0]["name_share"]


def test_a_stopped_run_goes_on_as_if_it_had_not_been(run_values, tmp_path):
    """SIGTERM in the middle saves; the same call ends with the same losses and weights."""
    whole = train(settings(run_values, output=str(tmp_path / "whole"), steps=12))
    before = signal.getsignal(signal.SIGTERM)
    config = settings(run_values, steps=12)

    def interrupt(step, values):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with StopSignal() as stop, pytest.raises(Stopped, match="stopped at step 5; the same command goes on from there"):
        train(config, stop, [interrupt])
    assert signal.getsignal(signal.SIGTERM) == before
    assert len(losses(tmp_path / "run")) == 5
    model = train(config)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert difference(weights(model), weights(whole)) == 0


def test_averages_of_the_weights_are_exported_beside_them(run_values, tmp_path):
    model = train(settings(run_values, optimizer__ema=0.5))
    last, average = weights(model), weights(tmp_path / "run" / "model-ema")
    assert last.keys() == average.keys()
    assert 0 < difference(last, average) < 0.01


def test_activation_checkpointing_changes_nothing(run_values, tmp_path):
    plain = train(settings(run_values))
    again = train(settings(run_values, output=str(tmp_path / "again"), activation_checkpointing=True))
    assert losses(tmp_path / "again") == losses(tmp_path / "run")
    assert difference(weights(plain), weights(again)) == 0


def test_another_run_in_the_same_place_is_refused(run_values):
    train(settings(run_values, train=["projector"]))
    with pytest.raises(ValueError, match="another run is there: choose another output"):
        train(settings(run_values, train=["region_encoder"], steps=8))


# ---- settings ------------------------------------------------------------------------------------------------------


def test_settings_come_from_file_and_command_line(tmp_path, run_values):
    path = tmp_path / "run.yaml"
    path.write_text("output: a\ninit: b\ntask: playground\nsteps: 9\noptimizer: {learning_rate: 3e-4}\n")
    config = TrainConfig.load(path, ["steps=50000", "output=c", "optimizer.clip=2", "train=[decoder]"])
    assert (config.output, config.steps, config.optimizer.learning_rate, config.optimizer.clip) == ("c", 50000, 3e-4, 2.0)
    assert config.train == ("decoder",)
    assert config_module.from_values(TrainConfig, config.to_values()) == config
    for override, says in [
        ("nonsense=1", "nonsense: no such setting; known: output, "),
        ("optimizer.nonsense=1", r"optimizer\.nonsense: no such setting"),
        ("steps", "write KEY=VALUE"),
        ("steps=many", "steps: must be int, got 'many'"),
        ("strategy=fast", "strategy: must be one of single, ddp"),
        ("train=[tail]", r"train\[0\]: must be one of vision_tower"),
        ("micro_batch_size=3", "micro_batch_size: must divide batch_size = 128"),
        ("workers=2", "strategy: `single` is one process"),
        ("task=instruct", r"data\.sources: task `instruct` needs"),
        ("steps=-5", "steps: must not be negative"),
        ("steps=0", "steps: needed, since task `playground` has no end"),
        ("steps=[1", r"steps=\[1: is not YAML"),
        ("data.sources=[{path: x}]", "data.sources: task `playground` makes its own data"),
        ("lora.rank=4", "train: leave out decoder"),
        ("data.sources=[{path: x, weight: 0}]", "weight: of x must be above 0"),
        ("checkpoint.keep_last=0", r"checkpoint\.keep_last must be"),
    ]:
        with pytest.raises(ValueError, match=says):
            TrainConfig.load(path, [override])


def test_shipped_configurations_are_valid():
    files = sorted((Path(config_module.__file__).parent / "configs").glob("*.yaml"))
    assert {"playground.yaml", "ferret_7b.yaml", "ferret_13b.yaml", "ferret_7b_lora.yaml"} <= {path.name for path in files}
    for path in files:
        TrainConfig.load(path)


def test_every_setting_says_what_it_is():
    assert all(text.endswith((".", ")")) and len(text) > 8 for _, text, _ in describe())
    assert {"output", "data.points", "checkpoint.keep_best"} <= {key for key, _, _ in describe()}


def test_a_gradient_that_is_not_finite_costs_no_weights(tiny_model, run_values):
    optimizer = MasterOptimizer(tiny_model, settings(run_values).optimizer)
    before = {name: master.clone() for name, master in optimizer.masters.items()}
    tiny_model.lm_head.weight.grad = torch.full_like(tiny_model.lm_head.weight, float("nan"))
    optimizer.accumulate()
    assert not math.isfinite(optimizer.step(1.0))
    assert all(torch.equal(before[name], master) for name, master in optimizer.masters.items())


def test_the_paper_schedule(run_values):
    schedule = settings(run_values).schedule
    factors = [learning_rate_factor(schedule, step, 1000) for step in range(1000)]
    assert factors[29] == 1 == max(factors)
    assert factors[0] == pytest.approx(1 / 30)
    assert factors[515] == pytest.approx(0.5, abs=0.01)
    assert factors[-1] < 1e-4
    trapezoid = settings(run_values, schedule={"name": "trapezoid", "warmup": 10, "decay": 0.5}).schedule
    assert [learning_rate_factor(trapezoid, step, 100) for step in (0, 9, 50, 75)] == [0.1, 1.0, 1.0, 0.5]


def test_numbers_start_as_neighbours(tiny_model, playground_processor):
    initialize_numbers(tiny_model, playground_processor.tokenizer)
    ids = playground_processor.tokenizer.convert_tokens_to_ids(["500", "501", "900"])
    near, next_to, far = tiny_model.get_input_embeddings().weight[ids]
    assert torch.cosine_similarity(near, next_to, dim=0) > 0.9 > torch.cosine_similarity(near, far, dim=0)
    assert number_code().std() == pytest.approx(1, abs=0.05)


def test_the_head_never_holds_all_logits(tiny_model, monkeypatch):
    """Chunked loss and gradients are the plain ones."""
    monkeypatch.setattr("ferret_core.model.packing._POSITIONS_PER_CHUNK", 7)
    hidden = torch.randn(20, 32, requires_grad=True)
    targets = torch.randint(0, 500, (20,))
    loss, predictions = tiny_model.lm_head(hidden, targets)
    (gradient,) = torch.autograd.grad(loss, hidden)
    logits = tiny_model.lm_head(hidden)
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, hidden)[0])
    assert torch.equal(predictions, logits.argmax(-1))
