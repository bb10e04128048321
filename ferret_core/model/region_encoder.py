"""From a region of an image to one embedding: the spatial-aware visual sampler (paper section 3.2) and a simple adapter.

A region enters as points: `sample_points` takes a fixed number of pixels from its mask, so masks never travel.

Shapes: B images, N patches, d vision width, D decoder width, R regions, P points, M anchors, K neighbours.

The sampler is evaluated re-associated. For a neighbour n of an anchor a, with x = [feature, point] of width d + 2,

    aggregate(concat(difference(x_n - x_a), x_a)) = (U1 W) x_n + (U2 x_a + U1 b + c) - (U1 W) x_a

where W, b are `difference`'s weights and [U1 U2], c `aggregate`'s. So both layers run once per point instead of once per
pair; and as reading a map is linear, too, where points are read from a map U1 W runs once per patch, whatever the number of
regions (at d = 1024, 0.8 GFLOP a region and 2 a map, instead of 24 a region). The result is the same up to rounding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ferret_core.model.configuration import FerretConfig

Read = Callable[[Tensor, Tensor], Tensor]
"""Maps `(B, N, c)` at points `(R, P, 2)`, as `read_features` reads them."""

SAMPLING = 1  # goes up when the same region and weights come to give another embedding: caches must not mix them

_ANCHORS_PER_CHUNK = {"cpu": 16, "cuda": 2048}
"""At inference: on a CPU few, so that the gathered neighbours stay in the cache; on a GPU many, for every chunk is launches."""


# ---- points of a region ----------------------------------------------------------------------------------------------


def mask_generator(mask: np.ndarray) -> torch.Generator:
    """Random numbers that depend on nothing but the mask: the same region always yields the same points."""
    digest = hashlib.sha256(np.packbits(mask).tobytes() + repr(mask.shape).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def sample_points(mask: np.ndarray, count: int, generator: torch.Generator | None = None, repeat: bool = True) -> Tensor:
    """Points of a region, the first of which is where the sampler starts.

    Args:
        mask: `(height, width)`; every non-zero pixel belongs to the region.
        count: how many points.
        generator: for training: a random subset in random order. By default the subset is a function of the mask, in
            x-major order (smallest x, then smallest y) from the region's first pixel on.
        repeat: fill up a small region with random repeats; otherwise with NaN, which the mean-pool adapter skips.

    Returns:
        float32 `(count, 2)`: x / width and y / height of each point, in [0, 1).

    Raises:
        ValueError: the mask is empty (only with `repeat`).
    """
    x, y = (torch.from_numpy(i) for i in np.nonzero(mask.T))
    points = torch.stack((x / mask.shape[1], y / mask.shape[0]), dim=-1).float()
    total = len(points)
    random = generator or mask_generator(mask)
    if total > count:
        chosen = torch.randperm(total - 1, generator=random)[: count - 1].sort().values + 1
        points = torch.cat((points[:1], points[chosen]))
    elif not repeat:
        return F.pad(points, (0, 0, 0, count - total), value=torch.nan)
    elif total == 0:
        raise ValueError("region: covers no pixel")
    else:
        points = torch.cat((points, points[torch.randint(total, (count - total,), generator=random)]))
    return points if generator is None else points[torch.randperm(count, generator=generator)]


def farthest_points(points: Tensor, count: int) -> Tensor:
    """Farthest-point sampling from the first point on: next is always the point farthest from all chosen so far.

    Args:
        points: float32 `(R, P, 2)`.
        count: points to choose.

    Returns:
        int64 `(R, count)`, indices in order of choice; the lowest index of equals wins.
    """
    if points.is_cuda and find_spec("triton"):  # below, every point would be several launches
        from ferret_core.model import farthest_points_triton

        return farthest_points_triton.farthest_points(points, count)
    x, y = points.unbind(-1)
    nearest = torch.full_like(x, torch.inf)
    chosen = torch.empty(len(points), count, dtype=torch.long, device=points.device)
    current = chosen.new_zeros(len(points), 1)
    for i in range(count):
        chosen[:, i : i + 1] = current
        distance = (x - x.gather(1, current)).square_() + (y - y.gather(1, current)).square_()
        nearest = torch.minimum(nearest, distance)
        current = nearest.argmax(dim=1, keepdim=True)
    return chosen


def nearest_neighbors(points: Tensor, anchors: Tensor, count: int) -> Tensor:
    """The `count` nearest of `points` `(R, P, 2)` to each of `anchors` `(R, M, 2)`; the lowest index of equals wins.

    Returns int64 `(R, M, count)`, nearest first. Distances are float32 differences, whatever the model's dtype.
    """
    (x, y), (anchor_x, anchor_y) = points.unbind(-1), anchors.unbind(-1)
    distance = (x[:, None] - anchor_x[..., None]).square_() + (y[:, None] - anchor_y[..., None]).square_()
    # topk breaks ties as it likes. Non-negative floats order like their bits: with the distance above and the index below,
    # no two keys are equal.
    keys = (distance.view(torch.int32).long() << 32) | torch.arange(points.shape[1], device=points.device)
    return keys.topk(count, largest=False).values & 0xFFFFFFFF


def read_features(features: Tensor, points: Tensor, image_index: Tensor, transposed: bool = False) -> Tensor:
    """Bilinear reading of feature maps at points, at least in float32: corners fall on the centres of the corner patches.

    One weighted gather of four rows per point over all regions and images; no copy of a map for any region.

    Args:
        features: `(B, N, d)`, each a square map in row-major order.
        points: float32 `(R, P, 2)`, x and y in [0, 1]; NaN reads zeros.
        image_index: int64 `(R,)`, the image of each region.
        transposed: exchange x and y, as the released system does.

    Returns:
        `(R, P, d)`, float32 unless the features are wider.
    """
    _, patches, _ = features.shape
    dtype = torch.promote_types(features.dtype, torch.float32)
    side = int(patches**0.5)
    place = (points.flip(-1) if transposed else points).float() * (side - 1)
    valid = ~place.isnan()
    place = place.nan_to_num(0.0).clamp(0, side - 1)
    low = place.floor().clamp(max=side - 2)
    (x, y), (right, below) = low.long().unbind(-1), (place - low).unbind(-1)
    corner = image_index[:, None] * patches + y * side + x
    rows = torch.stack((corner, corner + 1, corner + side, corner + side + 1), dim=-1)
    left, above = 1 - right, 1 - below
    weights = torch.stack((left * above, right * above, left * below, right * below), dim=-1) * valid.all(-1, keepdim=True)
    read = F.embedding_bag(
        rows.flatten(0, 1), features.to(dtype).flatten(0, 1), per_sample_weights=weights.to(dtype).flatten(0, 1), mode="sum"
    )
    return read.unflatten(0, points.shape[:2])


# ---- encoders --------------------------------------------------------------------------------------------------------


class SamplerStage(nn.Module):
    """P points to M: farthest-point sampling, K neighbours of each anchor, fused into one feature."""

    def __init__(self, width: int, anchors: int, neighbors: int, pooling: str) -> None:
        super().__init__()
        self.anchors, self.neighbors, self.pooling = anchors, neighbors, pooling
        self.difference = nn.Linear(width + 2, width + 2)
        self.aggregate = nn.Linear(2 * (width + 2), width)
        self.norm = nn.LayerNorm(width)

    def choose(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of the anchors `(R, M)` and of their neighbours `(R, M, K)` among `points` `(R, P, 2)`."""
        anchors = farthest_points(points, self.anchors)
        return anchors, nearest_neighbors(points, _take(points, anchors), self.neighbors)

    def forward(self, features: Tensor, points: Tensor, anchors: Tensor, neighbors: Tensor, read: Read | None = None) -> Tensor:
        """Fused features `(R, M, d)` of the anchors.

        Args:
            features: `(R, P, d)`, of the points; with `read`, maps `(B, N, d)`.
            points: `(R, P, 2)`.
            anchors: their indices `(R, M)`.
            neighbors: and those of their neighbours, `(R, M, K)`.
            read: reads maps of any width at points.
        """
        width, dtype = features.shape[-1], features.dtype
        of_feature, of_point = self.difference.weight.split((width, 2), dim=1)
        of_neighbor, of_anchor = self.aggregate.weight.split(width + 2, dim=1)
        constant = F.linear(self.difference.bias, of_neighbor, self.aggregate.bias)
        anchor_points, from_features = _take(points, anchors), _chain(features, of_feature, of_neighbor)
        if read:
            features, from_features = read(features, anchor_points), read(from_features, points).to(dtype)
        else:
            features = _take(features, anchors)
        neighbor_terms = from_features + _chain(points.to(dtype), of_point, of_neighbor)
        x_anchor = torch.cat((features, anchor_points), dim=-1).to(dtype)
        anchor_terms = F.linear(x_anchor, of_anchor, constant) - _take(neighbor_terms, anchors)

        # Gathered and fused a few anchors at a time, over all regions: what is gathered stays in the cache.
        first_row = torch.arange(len(points), device=points.device)[:, None, None] * points.shape[1]
        rows, table = (neighbors + first_row).flatten(0, 1), neighbor_terms.flatten(0, 1)
        chunk = len(rows) if torch.is_grad_enabled() else _ANCHORS_PER_CHUNK.get(rows.device.type, 16)
        pooled = [
            self._pool(F.embedding(index, table).add_(anchor_term[:, None]))
            for index, anchor_term in zip(rows.split(chunk), anchor_terms.flatten(0, 1).split(chunk), strict=True)
        ]
        return torch.cat(pooled).unflatten(0, anchors.shape)

    def forward_plain(self, features: Tensor, points: Tensor, anchors: Tensor, neighbors: Tensor) -> Tensor:
        """`forward` as the paper writes it, pair by pair: the yardstick of tests and benchmarks."""
        x = torch.cat((features, points.to(features.dtype)), dim=-1)
        rows = torch.arange(len(x), device=x.device)[:, None, None]
        anchor = _take(x, anchors)[:, :, None].expand(-1, -1, self.neighbors, -1)
        pairs = torch.cat((self.difference(x[rows, neighbors] - anchor), anchor), dim=-1)
        return self._pool(self.aggregate(pairs))

    def _pool(self, pairs: Tensor) -> Tensor:
        fused = self.norm(F.relu(pairs, inplace=not torch.is_grad_enabled()))
        return fused.amax(dim=-2) if self.pooling == "max" else fused.mean(dim=-2)


class SpatialAwareSampler(nn.Module):
    """The paper's region encoder: points, stages of neighbourhood fusion, one vector of decoder width."""

    def __init__(self, config: FerretConfig) -> None:
        super().__init__()
        width = config.vision_config.hidden_size
        self.transposed = config.transposed_region_points
        self.stages = nn.ModuleList(
            SamplerStage(width, anchors, config.sampler_neighbors, config.sampler_pooling) for anchors in config.sampler_stages
        )
        self.flatten = nn.Linear(config.sampler_stages[-1] * width, width)
        self.output = nn.Linear(width, config.text_config.hidden_size)

    def forward(self, features: Tensor, points: Tensor, image_index: Tensor, plain: bool = False) -> Tensor:
        """Region embeddings `(R, D)` in the features' dtype.

        Args:
            features: `(B, N, d)` feature maps.
            points: float32 `(R, P, 2)` of `sample_points`.
            image_index: int64 `(R,)`, the image of each region.
            plain: evaluate the stages pair by pair.
        """

        def read(maps: Tensor, at: Tensor) -> Tensor:
            return read_features(maps, at, image_index, self.transposed)

        x = read(features, points).to(features.dtype) if plain else features
        for i, stage in enumerate(cast(Iterable[SamplerStage], self.stages)):
            anchors, neighbors = stage.choose(points)
            if plain:
                x = stage.forward_plain(x, points, anchors, neighbors)
            else:
                x = stage(x, points, anchors, neighbors, read if i == 0 else None)
            points = _take(points, anchors)
        return self.output(self.flatten(x.flatten(1)))


class MeanPoolAdapter(nn.Module):
    """The simple region encoder: the map in decoder width, averaged over the region. An empty region gives zeros."""

    def __init__(self, config: FerretConfig) -> None:
        super().__init__()
        self.transposed = config.transposed_region_points
        self.linear = nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size)

    def forward(self, features: Tensor, points: Tensor, image_index: Tensor) -> Tensor:
        """Region embeddings `(R, D)`; arguments as for `SpatialAwareSampler`, NaN points are skipped."""
        valid = ~points.isnan().any(-1, keepdim=True)
        read = read_features(self.linear(features), points, image_index, self.transposed) * valid
        return (read.sum(1) / valid.sum(1).clamp(min=1)).to(features.dtype)


def build_region_encoder(config: FerretConfig) -> SpatialAwareSampler | MeanPoolAdapter:
    """The region encoder that `config.region_encoder` names."""
    return SpatialAwareSampler(config) if config.region_encoder == "spatial_aware" else MeanPoolAdapter(config)


def _take(values: Tensor, index: Tensor) -> Tensor:
    """Rows `(R, M, ...)` of `values` `(R, P, ...)` at `index` `(R, M)`."""
    return values[torch.arange(len(values), device=values.device)[:, None], index]


def _chain(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """One layer's weight after another's on `x` `(A, B, in)`, associated as is cheapest."""
    return torch.linalg.multi_dot((x.flatten(0, 1), first.T, second.T)).unflatten(0, x.shape[:2])
