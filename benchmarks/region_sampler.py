"""The spatial-aware sampler at CLIP ViT-L/14 width: re-associated against the paper's formulation, same results.

python benchmarks/region_sampler.py [--device cuda] [--rounds 5]

The plain one computes at most 32 regions at a time: it gathers 0.2 GB of pairs for each.
"""

import argparse
from functools import partial

import torch
from measure import compare, hardware, write_result
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig

from ferret_core.model import FerretConfig
from ferret_core.model.region_encoder import SpatialAwareSampler

PLAIN_REGIONS = 32


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--regions", type=int, nargs="+", default=[1, 8, 32, 128])
    options = parser.parse_args()

    torch.manual_seed(0)
    config = FerretConfig(
        vision_config=CLIPVisionConfig(hidden_size=1024, num_attention_heads=16, image_size=336, patch_size=14),
        text_config=LlamaConfig(hidden_size=4096, num_attention_heads=32),
    )
    sampler = SpatialAwareSampler(config).to(options.device).eval()
    features = torch.randn(1, 576, 1024, device=options.device)
    rows = []
    for count in options.regions:
        points = torch.rand(count, 512, 2, device=options.device)
        owners = torch.zeros(count, dtype=torch.long, device=options.device)

        def plain(points: Tensor = points, owners: Tensor = owners) -> Tensor:
            parts = zip(points.split(PLAIN_REGIONS), owners.split(PLAIN_REGIONS), strict=True)
            return torch.cat([sampler(features, *part, plain=True) for part in parts])

        difference = (sampler(features, points, owners) - plain()).abs().max()
        seconds = compare(
            {
                "plain": plain,
                "re-associated": partial(sampler, features, points, owners),
            },
            options.rounds,
            options.device,
        )
        ratio = seconds["plain"] / seconds["re-associated"]
        rows.append({"regions": count, "seconds": seconds, "ratio": round(ratio, 1), "largest_difference": float(difference)})
        print(rows[-1])
    print(write_result(f"region_sampler_{options.device}", {"hardware": hardware(options.device), "float32, d=1024": rows}))


if __name__ == "__main__":
    main()
