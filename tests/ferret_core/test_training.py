"""Training: labels where they belong, a loop that learns, and a stop that costs nothing."""

import json
import os
import signal

import pytest
import torch

from ferret_core.checkpoint.bundled import BUNDLED
from ferret_core.data.playground import playground_example
from ferret_core.model import FerretForConditionalGeneration
from ferret_core.model.modeling import IGNORE_INDEX
from ferret_core.training.config import TrainConfig
from ferret_core.training.loop import Means, train
from ferret_core.training.number_code import initialize_numbers, number_code
from ferret_core.training.samples import build_sample, collate


@pytest.fixture
def run_config(tiny_config, tmp_path):
    """Settings of a run of a tiny model, as a dictionary."""
    init = tmp_path / "init"
    init.mkdir()
    tiny_config.save_pretrained(init)
    return {
        "output": str(tmp_path / "run"),
        "init": str(init / "config.json"),
        "tokenizer": str(BUNDLED["playground"]),
        "steps": 6,
        "batch_size": 2,
        "turns": 2,
        "warmup_steps": 1,
        "decay_steps": 1,
        "eval_examples": 2,
        "eval_steps": 6,
        "log_steps": 1,
        "device": "cpu",
    }


def losses(directory):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def test_labels_are_the_answers(playground_processor):
    for index in range(5):
        example = playground_example("train", index)
        sample = build_sample(example, playground_processor, 2048)
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


def test_long_conversations_lose_their_last_turns(playground_processor):
    example = playground_example("train", 0, 8)
    whole = build_sample(example, playground_processor, 2048)
    short = build_sample(example, playground_processor, len(whole.input_ids) - 1)
    assert torch.equal(short.input_ids, whole.input_ids[: len(short.input_ids)])
    assert short.input_ids[-1] == playground_processor.tokenizer.eos_token_id
    with pytest.raises(ValueError, match="longer than max_length"):
        build_sample(example, playground_processor, 290)


def test_padding_changes_nothing(tiny_model, tiny_processor):
    """Right padding without a mask: the loss of a batch is that of its samples."""
    samples = [build_sample(playground_example("train", i, 2 + i), tiny_processor, 1024) for i in range(3)]
    with torch.no_grad():
        together = tiny_model(**collate(samples)).loss
        apart = [tiny_model(**collate([sample])).loss for sample in samples]
    counts = torch.tensor([(sample.labels[1:] != IGNORE_INDEX).sum() for sample in samples])
    torch.testing.assert_close(together, (torch.stack(apart) * counts).sum() / counts.sum())


@pytest.mark.parametrize("task", ["dense", "instruct"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_runs_and_leaves_a_model(run_config, tmp_path, task, precision):
    directory = train(TrainConfig(**run_config | {"task": task, "precision": precision}))
    model = FerretForConditionalGeneration.from_pretrained(directory)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    assert all(p.dtype == dtype and p.isfinite().all() for p in model.parameters())
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert '"validation_loss"' in lines
    assert len(losses(tmp_path / "run")) == 6


def test_learns_one_batch_by_heart(run_config, tmp_path, monkeypatch):
    """Loss falls when the same scenes come again and again."""
    monkeypatch.setattr("ferret_core.training.samples.InstructionDataset.__getitem__", _same_scene)
    train(TrainConfig(**run_config | {"steps": 40, "eval_steps": 40, "workers": 1}))
    curve = losses(tmp_path / "run")
    assert curve[40] < 0.7 * curve[1]


def _same_scene(self, _):
    return build_sample(playground_example("train", 0, 2), self.processor, 1024, torch.Generator().manual_seed(0))


def test_a_stopped_run_goes_on_as_if_it_had_not_been(run_config, tmp_path, monkeypatch):
    """SIGTERM in the middle saves; the same command ends with the same losses and weights."""
    whole = train(TrainConfig(**run_config | {"output": str(tmp_path / "whole"), "steps": 12}))
    add = Means.add

    def add_and_interrupt(self, metrics, count=1):
        add(self, metrics, count)
        if len(losses(tmp_path / "run")) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    config = TrainConfig(**run_config | {"steps": 12})
    with monkeypatch.context() as patch:
        patch.setattr(Means, "add", add_and_interrupt)
        with pytest.raises(SystemExit, match="stopped at step 4; the same command goes on from there"):
            train(config)
    assert signal.getsignal(signal.SIGTERM) == before
    assert len(losses(tmp_path / "run")) == 4
    train(config)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    resumed = FerretForConditionalGeneration.from_pretrained(tmp_path / "run" / "model")
    for name, parameter in FerretForConditionalGeneration.from_pretrained(whole).named_parameters():
        assert torch.equal(resumed.get_parameter(name), parameter), name


def test_settings_come_from_file_and_command_line(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("output: a\ninit: b\nlearning_rate: 3e-4\n")
    config = TrainConfig.load(path, ["steps=50000", "output=c", "clip=2"])
    assert (config.output, config.steps, config.learning_rate, config.clip) == ("c", 50000, 3e-4, 2.0)
    for override, says in [
        ("nonsense=1", "nonsense: no such setting"),
        ("steps", "write KEY=VALUE"),
        ("steps=0", "steps: must be"),
    ]:
        with pytest.raises(ValueError, match=says):
            TrainConfig.load(path, [override])


def test_shipped_configurations_are_valid():
    from ferret_core.training import config

    directory = __import__("pathlib").Path(config.__file__).parent / "configs"
    files = sorted(directory.glob("*.yaml"))
    assert files
    for path in files:
        TrainConfig.load(path)


def test_numbers_start_as_neighbours(tiny_model, playground_processor):
    initialize_numbers(tiny_model, playground_processor.tokenizer)
    ids = playground_processor.tokenizer.convert_tokens_to_ids(["500", "501", "900"])
    near, next_to, far = tiny_model.get_input_embeddings().weight[ids]
    assert torch.cosine_similarity(near, next_to, dim=0) > 0.9 > torch.cosine_similarity(near, far, dim=0)
    assert number_code().std() == pytest.approx(1, abs=0.05)
