"""DeepSpeed's configuration of a run, made from `TrainConfig`: nobody writes that JSON by hand.

    engine, *_ = deepspeed.initialize(model=..., optimizer=torch.optim.AdamW(...), config=deepspeed_config(config, world_size))

The engine's forward takes one pack of samples, and `step()` is called after each, `gradient_accumulation_steps` times for an
update. The optimiser is ours: nothing is compiled when a run starts.
"""

from __future__ import annotations

from typing import Any

from ferret_core.training.batches import accumulation_steps
from ferret_core.training.config import TrainConfig

BUCKET = 200_000_000
"""Elements that are reduced or gathered at a time: larger than any weight of a 13B, small against a GPU."""
LIVE_PARAMETERS = 500_000_000
"""Most parameters that ZeRO-3 has gathered at any one time."""


def deepspeed_config(config: TrainConfig, world_size: int) -> dict[str, Any]:
    """The dictionary for `deepspeed.initialize`.

    Args:
        config: the run; its strategy is zero1, zero2 or zero3.
        world_size: processes that take part, which may be fewer than `config.workers`.

    Raises:
        ValueError: the strategy is none of DeepSpeed's.
    """
    if not config.zero_stage:
        raise ValueError(f"strategy: {config.strategy} runs without DeepSpeed; take zero1, zero2 or zero3")
    stage = config.zero_stage
    zero: dict[str, Any] = {
        "stage": stage,
        "contiguous_gradients": True,
        "overlap_comm": True,
        "reduce_bucket_size": BUCKET,
    }
    if stage < 3:
        zero |= {"allgather_bucket_size": BUCKET}
    else:
        zero |= {
            "sub_group_size": BUCKET,  # how much is updated at a time
            "stage3_prefetch_bucket_size": BUCKET // 4,
            "stage3_max_live_parameters": LIVE_PARAMETERS,
            "stage3_max_reuse_distance": LIVE_PARAMETERS,
        }
    if config.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if config.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {
        "train_micro_batch_size_per_gpu": 1,  # a pack, whatever it holds
        "gradient_accumulation_steps": accumulation_steps(config.micro_batches, world_size),
        "gradient_clipping": config.optimizer.clip,
        "bf16": {"enabled": config.precision == "bf16"},
        # Gradients are summed in float32, over packs and over processes: bfloat16 has 8 bits for a sum of dozens.
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # torch's AdamW
        "zero_force_ds_cpu_optimizer": False,  # which would be compiled for minutes on first use
        "steps_per_print": 10**9,  # the loop logs
        "wall_clock_breakdown": False,
    }
