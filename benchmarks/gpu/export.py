"""The newest checkpoint of a training run, finished or not, as a model.

python benchmarks/gpu/export.py runs/gpu /tmp/model
"""

import sys
import tempfile
from pathlib import Path

import torch

from ferret_core.training.checkpoints import Checkpoints
from ferret_core.training.config import TrainConfig
from ferret_core.training.start import load_model
from ferret_core.training.storage import Storage
from ferret_core.training.workers import Workers


@torch.no_grad()
def main() -> None:
    run, output = sys.argv[1:]
    config = TrainConfig.load(Path(run) / "config.yaml")
    with tempfile.TemporaryDirectory() as scratch:
        alone = Workers(0, 1, torch.device("cpu"))
        checkpoints = Checkpoints(Storage.at(run, Path(scratch)), Path(scratch), config.checkpoint, alone)
        step = checkpoints.latest()
        if step is None:
            sys.exit(f"{run}: no checkpoint yet")
        model, processor = load_model(config)  # what is frozen stays as it began
        for name, state in checkpoints.load(step).items():
            model.get_parameter(name.removeprefix("model.")).copy_(state["master"])
    model.save_pretrained(output)
    processor.save_pretrained(output)
    print(f"{output}: step {step}")


if __name__ == "__main__":
    main()
