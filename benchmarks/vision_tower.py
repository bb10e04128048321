"""The vision tower at CLIP ViT-L/14-336's shape: up to the layer that is read, against the whole tower, same features.

python benchmarks/vision_tower.py [--device cuda] [--dtype bfloat16] [--rounds 5]

Weights are random. Transformers computes all layers, the last of which (and the final norm) nobody reads, and is asked for
the states of all of them. A batch is one candidate, its pictures one after the other another.
"""

import argparse
from functools import partial

import torch
from measure import compare, hardware, write_result
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig

from ferret_core.model import FerretConfig, FerretForConditionalGeneration


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()

    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    config = FerretConfig(vision_config=vision, text_config=LlamaConfig(hidden_size=4096, num_attention_heads=32))
    dtype = getattr(torch, options.dtype)
    model = FerretForConditionalGeneration(config, parts=("vision_tower",)).to(options.device, dtype).eval().model
    layer = config.vision_feature_layer

    def whole(pixels: Tensor) -> Tensor:
        return model.vision_tower(pixels, output_hidden_states=True).hidden_states[layer][:, 1:]

    def one_by_one(pixels: Tensor) -> Tensor:
        return torch.cat([model.encode_images(each) for each in pixels.split(1)])

    rows = []
    for count in options.pictures:
        pixels = torch.randn(count, 3, 336, 336, device=options.device, dtype=dtype)
        candidates = {"whole tower": whole, "ours, one by one": one_by_one, "ours": model.encode_images}
        features = [candidate(pixels).float() for candidate in candidates.values()]
        seconds = compare({name: partial(c, pixels) for name, c in candidates.items()}, options.rounds, options.device)
        rows.append(
            {
                "pictures": count,
                "seconds": seconds,
                "ratio": round(seconds["whole tower"] / seconds["ours"], 2),
                "ratio, batch to one by one": round(seconds["ours, one by one"] / seconds["ours"], 2),
                "largest_difference": max(float((each - features[-1]).abs().max()) for each in features),
                "largest_feature": float(features[-1].abs().max()),
            }
        )
        print(rows[-1], flush=True)
    facts = {"hardware": hardware(options.device), "dtype": str(dtype), "layers": vision.num_hidden_layers, "read": layer}
    print(write_result(f"vision_tower_{options.device}", facts | {"rows": rows}))


if __name__ == "__main__":
    main()
