"""However the work is shared, the same is learned."""

import shutil

import pytest
import torch

from ferret_core.model import FerretForConditionalGeneration
from ferret_core.training.adapters import add_adapters
from ferret_core.training.loop import train
from ferret_core.training.start import load_model
from tests.training import difference, losses, run, settings, weights

NAMES = ["ddp", "zero1", "zero2", "zero3"]


@pytest.fixture
def alone(run_values, tmp_path):
    """Losses and weights of a run in one process."""
    model = train(settings(run_values, output=str(tmp_path / "alone")))
    return losses(tmp_path / "alone"), weights(model)


@pytest.mark.parametrize("strategy", NAMES)
def test_two_workers_equal_one(run_values, tmp_path, alone, strategy):
    run(run_values, tmp_path / "run.yaml", strategy=strategy, workers=2)
    assert difference(losses(tmp_path / "run"), alone[0]) < 1e-5
    assert difference(weights(tmp_path / "run" / "model"), alone[1]) < 1e-5


def test_three_workers_share_four_micro_batches(run_values, tmp_path):
    """Two of the six places are filled with work that counts for nothing."""
    expected = train(settings(run_values, output=str(tmp_path / "alone"), micro_batch_size=1))
    run(run_values, tmp_path / "run.yaml", strategy="zero3", workers=3, micro_batch_size=1)
    assert difference(losses(tmp_path / "run"), losses(tmp_path / "alone")) < 1e-5
    assert difference(weights(tmp_path / "run" / "model"), weights(expected)) < 2e-5


@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_bfloat16_stays_close(run_values, tmp_path, strategy):
    """Shards round in another order; the losses agree as far as eight bits do."""
    train(settings(run_values, output=str(tmp_path / "alone"), precision="bf16"))
    run(run_values, tmp_path / "run.yaml", strategy=strategy, workers=2, precision="bf16")
    assert difference(losses(tmp_path / "run"), losses(tmp_path / "alone")) < 0.01
    assert all(value.dtype == torch.bfloat16 for value in weights(tmp_path / "run" / "model").values())


def cut(directory, until):
    """Makes a run look as if it had ended at a step, after a checkpoint."""
    later = [path for path in (directory / "checkpoints").iterdir() if int(path.name.removeprefix("step-")) > until]
    assert later
    for path in later:
        shutil.rmtree(path)


def test_a_run_goes_on_with_another_strategy_and_number_of_workers(run_values, tmp_path, alone):
    """2 x ZeRO-3, then 3 x ZeRO-2, then 2 x ZeRO-3 again: as one run in one process."""
    for strategy, workers, until in (("zero3", 2, 2), ("zero2", 3, 4), ("zero3", 2, 6)):
        changes = {"strategy": strategy, "workers": workers, "checkpoint__steps": 2, "checkpoint__keep_last": 10}
        run(run_values, tmp_path / "run.yaml", **changes)
        if until < 6:
            cut(tmp_path / "run", until)
    assert difference(losses(tmp_path / "run"), alone[0]) < 1e-5
    assert difference(weights(tmp_path / "run" / "model"), alone[1]) < 1e-5


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero3"])
def test_a_bfloat16_run_goes_on_exactly(run_values, tmp_path, strategy):
    """Master weights, moments and the means of a report that the checkpoint fell into."""
    changes = {"strategy": strategy, "workers": 2, "precision": "bf16", "log_steps": 4, "checkpoint__steps": 3}
    changes |= {"checkpoint__keep_last": 10, "lora": {"rank": 2, "dropout": 0.5}, "train": ["vision_tower", "projector"]}
    run(run_values, tmp_path / "run.yaml", **changes)
    whole, model = losses(tmp_path / "run"), weights(tmp_path / "run" / "model")
    cut(tmp_path / "run", 3)
    shutil.rmtree(tmp_path / "run" / "model")
    run(run_values, tmp_path / "run.yaml", **changes)
    assert losses(tmp_path / "run") == whole
    assert difference(weights(tmp_path / "run" / "model"), model) == 0


def test_frozen_parts_stay_and_the_others_move(run_values, tmp_path):
    config = settings(run_values, train=["region_encoder"])
    torch.manual_seed(config.seed)
    before = dict(load_model(config)[0].named_parameters())
    for name, after in weights(train(config)).items():
        assert torch.equal(before[name], after) == ("region_encoder" not in name), name


@pytest.mark.parametrize("strategy", ["single", "zero3"])
def test_adapters_are_merged_into_what_they_adapt(run_values, tmp_path, strategy):
    """The exported model answers as the one with its adapters beside it; without training, as the one it began as."""
    values = run_values | {"train": ["projector"], "lora": {"rank": 4, "alpha": 8.0, "dropout": 0.0}}
    if strategy == "single":
        train(settings(values))
    else:
        run(values, tmp_path / "run.yaml", strategy=strategy, workers=2)
    merged = FerretForConditionalGeneration.from_pretrained(tmp_path / "run" / "model").eval()
    config = settings(values)
    torch.manual_seed(config.seed)
    applied = load_model(config)[0].eval()
    ids = torch.arange(5, 25)[None]
    started = applied(input_ids=ids).logits
    add_adapters(applied, config)
    torch.testing.assert_close(applied(input_ids=ids).logits, started)
    from safetensors.torch import load_file

    states = {}
    for path in (tmp_path / "run" / "checkpoints" / "step-00000006").glob("*.safetensors"):
        states |= load_file(path)
    masters = {
        key.removesuffix("|master").removeprefix("model."): value for key, value in states.items() if key.endswith("|master")
    }
    assert len([name for name in masters if "lora_" in name]) == 2 * 7 * 2
    missing = applied.load_state_dict(masters, strict=False)
    assert not missing.unexpected_keys
    with torch.no_grad():
        expected, found = applied(input_ids=ids).logits, merged(input_ids=ids).logits
    assert (found - started).abs().max() > 1e-4
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
