"""The newest weights of a training run, finished or not, as a model in shards of at most 14 MB.

python benchmarks/gpu/export.py runs/gpu /tmp/gpu/model
"""

import sys
from pathlib import Path

import torch

from ferret_core.checkpoint.bundled import DEFAULT, checkpoint_path
from ferret_core.model import FerretForConditionalGeneration, FerretProcessor


def main() -> None:
    run, output = Path(sys.argv[1]), Path(sys.argv[2])
    start = checkpoint_path(DEFAULT)
    model = FerretForConditionalGeneration.from_pretrained(start, dtype=torch.bfloat16)
    state = torch.load(run / "checkpoint" / "state.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(state["module"])
    model.save_pretrained(output, max_shard_size="14MB")
    FerretProcessor.from_pretrained(start).save_pretrained(output)


if __name__ == "__main__":
    main()
