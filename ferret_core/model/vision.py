"""Vision towers: image to a map of patch features.

The stock CLIP tower is transformers' own; `ConvStemVisionModel` is the same transformer behind a convolutional stem.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionModel

from ferret_core.model.configuration import ConvStemVisionConfig


class ConvStemVisionModel(CLIPVisionModel):
    """CLIP's vision transformer with patches from `ConvStem`."""

    config: ConvStemVisionConfig
    config_class = ConvStemVisionConfig

    def __init__(self, config: ConvStemVisionConfig) -> None:
        super().__init__(config)
        self.embeddings.patch_embedding = ConvStem(config)
        self.post_init()


class ConvStem(nn.Module):
    """Stages of a strided convolution and residual blocks: `(B, 3, S, S)` to `(B, hidden_size, S / 2^n, S / 2^n)`."""

    def __init__(self, config: ConvStemVisionConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = config.num_channels
        for width, blocks in zip(config.stem_widths, config.stem_blocks, strict=True):
            layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False), ChannelLayerNorm(width), nn.ReLU()]
            layers += [ResidualBlock(width) for _ in range(blocks)]
            channels = width
        self.layers = nn.Sequential(*layers)
        self.projection = nn.Conv2d(channels, config.hidden_size, 1)

    @property
    def weight(self) -> Tensor:
        """CLIP's embeddings ask their patch embedding for the dtype, and initialise it, through this name."""
        return self.projection.weight

    def forward(self, pixels: Tensor) -> Tensor:
        return self.projection(self.layers(pixels))


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = ChannelLayerNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = ChannelLayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))


class ChannelLayerNorm(nn.LayerNorm):
    """Layer norm over the channels of `(B, C, H, W)`. No batch statistics: a picture's features are its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
