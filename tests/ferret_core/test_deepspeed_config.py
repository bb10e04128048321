"""DeepSpeed takes the configuration made for it, trains as one process would, and holds what the plan says it holds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ferret_core.training.activations import Activations
from ferret_core.training.deepspeed_config import deepspeed_config
from ferret_core.training.plan import estimate_memory
from tests.ferret_core.deepspeed_run import STEPS, Toy, pack, toy_config, toy_optimizer

WORKERS = 2
RUNS = [f"zero{stage}:{precision}:none" for precision in ("fp32", "bf16") for stage in (1, 2, 3)]
OFFLOADED = ["zero2:bf16:optimizer", "zero3:bf16:all"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of all runs, by two real processes."""
    pytest.importorskip("deepspeed")
    output = tmp_path_factory.mktemp("deepspeed") / "results.pt"
    script = Path(__file__).parent / "deepspeed_run.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORKERS}", str(script)]
    environment = os.environ | {"PYTHONPATH": str(script.parents[2])}
    done = subprocess.run(
        [*command, str(output), *RUNS, *OFFLOADED], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(output)


@pytest.fixture(scope="module")
def alone():
    """The weights and gradient norms of one process that takes all packs of a step."""
    model = Toy()
    trained = [p for p in model.parameters() if p.requires_grad]
    config = toy_config("zero1")
    optimizer = toy_optimizer(model)
    packs = config.batch_size // config.micro_batch_size
    norms = []
    for step in range(STEPS):
        for micro in range(packs):
            (model(pack(step * packs + micro)) / packs).backward()
        norms.append(float(nn.utils.clip_grad_norm_(trained, config.optimizer.clip)))
        optimizer.step()
        optimizer.zero_grad()
    return dict(model.named_parameters()), norms


@pytest.mark.parametrize("run", RUNS + OFFLOADED)
def test_trains_as_one_process_does(results, alone, run):
    weights, norms = alone
    exact = "fp32" in run
    assert results[run]["norms"] == pytest.approx(norms, rel=1e-5 if exact else 1e-2)
    for name, weight in weights.items():
        torch.testing.assert_close(results[run]["weights"][name], weight, rtol=0, atol=1e-6 if exact else 5e-3)


@pytest.mark.parametrize("run", RUNS)
def test_holds_what_the_plan_says(results, run):
    strategy, precision, _ = run.split(":")
    trained = sum(p.numel() for p in Toy().parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in Toy().parameters()) - trained
    config = toy_config(strategy, precision)
    plan = estimate_memory(trained, frozen, 8 * trained, Activations(kept=0, working=0), config)
    assert results[run]["held"] == {"gradients": plan.gradients, "weights": plan.weights, "optimizer": plan.optimizer}


def test_batches_keep_their_size_on_any_number_of_processes():
    config = toy_config("zero2", workers=4)  # 8 packs of a step
    assert [deepspeed_config(config, world)["gradient_accumulation_steps"] for world in (1, 2, 3, 4, 8)] == [8, 4, 3, 2, 1]


def test_other_strategies_have_none():
    with pytest.raises(ValueError, match="strategy: ddp runs without DeepSpeed; take zero1"):
        deepspeed_config(toy_config("ddp"), 2)
