"""Run by test_deepspeed_config.py under torchrun: a toy model trained by DeepSpeed as `deepspeed_config` has it.

    torchrun --nproc-per-node 2 tests/ferret_core/deepspeed_run.py OUTPUT STRATEGY:PRECISION:OFFLOAD ...

Writes, for each, the weights after some steps and the bytes that the first process holds.
"""

import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ferret_core.training.config import OptimizerConfig, TrainConfig
from ferret_core.training.deepspeed_config import deepspeed_config

STEPS, WIDTH = 3, 64


def toy_config(strategy: str, precision: Any = "fp32", offload: Any = "none", workers: int = 2) -> TrainConfig:
    return TrainConfig(
        output="-", init="-", task="playground", steps=STEPS, batch_size=4 * workers, micro_batch_size=2, workers=workers,
        strategy=strategy, precision=precision, offload=offload, optimizer=OptimizerConfig(learning_rate=1e-2, clip=0.05),
    )  # fmt: skip


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(WIDTH, 4 * WIDTH)
        self.frozen = nn.Linear(4 * WIDTH, 4 * WIDTH).requires_grad_(False)
        self.outer = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return (self.outer(torch.tanh(self.frozen(torch.tanh(self.inner(x))))) - 1).float().pow(2).mean()


def toy_optimizer(model: nn.Module) -> torch.optim.AdamW:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0, eps=1e-3, fused=True)  # so large that no rounding is blown up


def pack(number: int) -> Tensor:
    return torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(number))


def size(tensors: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def held_gradients(engine: Any, stage: int) -> int:
    """Bytes of summed gradients, between a backward pass and an update."""
    zero = engine.optimizer
    if stage == 3:
        return size([zero.grad_partitions_flat_buffer])
    if stage == 2:
        return size(gradient for group in zero.averaged_gradients.values() for gradient in group or ())
    if hasattr(zero, "fp32_groups_gradients_flat"):  # DeepSpeed's own optimiser for bfloat16 with float32 sums
        return size(zero.fp32_groups_gradients_flat)
    return size(p.grad for p in engine.module.parameters() if p.grad is not None)


def held(engine: Any, stage: int) -> dict[str, int]:
    """Bytes of weights, and of master weights with their moments."""
    zero = engine.optimizer
    masters = zero.fp32_partitioned_groups_flat if stage == 3 else zero.optimizer.param_groups[0]["params"]
    moments = [v for state in zero.optimizer.state.values() for k, v in state.items() if k != "step"]
    weights = [p.ds_tensor if stage == 3 else p for p in engine.module.parameters()]
    return {"weights": size(weights), "optimizer": size([*masters, *moments])}


def run(strategy: str, precision: str, offload: str) -> dict[str, Any]:
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__dict__["__compatible_ops__"] = {}  # nothing is to be compiled
    config = toy_config(strategy, precision, offload)
    model, stage = Toy(), int(strategy[-1])
    settings = deepspeed_config(config, dist.get_world_size())
    engine, *_ = deepspeed.initialize(model=model, optimizer=toy_optimizer(model), config=settings, dist_init_required=False)
    rank, world, packs = dist.get_rank(), dist.get_world_size(), settings["gradient_accumulation_steps"]
    norms, gradients = [], 0
    for step in range(STEPS):
        for micro in range(packs):
            x = pack((step * packs + micro) * world + rank)
            engine.backward(engine(x.bfloat16() if precision == "bf16" else x))
            gradients = max(gradients, held_gradients(engine, stage))
            engine.step()
        norms.append(float(engine.get_global_grad_norm()))
    weights = {}
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=stage == 3):
            weights[name] = parameter.detach().float().clone()
    return {"weights": weights, "norms": norms, "held": {"gradients": gradients, **held(engine, stage)}}


def main() -> None:
    output, *runs = sys.argv[1:]
    os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    results = {each: run(*each.split(":")) for each in runs}
    if dist.get_rank() == 0:
        torch.save(results, output)
    dist.barrier()
    os._exit(0)  # threads of Gloo and DeepSpeed that are still alive would end an orderly exit by an abort, now and then


if __name__ == "__main__":
    main()
