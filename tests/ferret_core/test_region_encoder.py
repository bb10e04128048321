"""The region encoder: same results in every formulation, a function of the mask, aware of where it looks."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ferret_core.geometry import Box, ImageSize, Point
from ferret_core.model.region_encoder import (
    MeanPoolAdapter,
    SpatialAwareSampler,
    farthest_points,
    nearest_neighbors,
    read_features,
    sample_points,
)

SIZE = ImageSize(64, 48)


def sampler_of(config, **changes):
    torch.manual_seed(0)
    values = config.to_dict() | changes
    return SpatialAwareSampler(type(config)(**values))


def inputs(config, regions=5, images=2, dtype=torch.float32):
    torch.manual_seed(1)
    features = torch.randn(images, config.num_patches, config.vision_config.hidden_size, dtype=dtype)
    points = torch.rand(regions, config.sampler_points, 2)
    return features, points, torch.arange(regions) % images


@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_reassociated_equals_plain(tiny_config, pooling):
    """Outputs and every gradient, in float64 so that nothing but the formulation can differ."""
    sampler = sampler_of(tiny_config, sampler_pooling=pooling).double()
    features, points, owners = inputs(tiny_config, dtype=torch.float64)
    results = []
    for plain in (False, True):
        leaf = features.clone().requires_grad_()
        sampler.zero_grad()
        output = sampler(leaf, points, owners, plain=plain)
        output.square().sum().backward()
        results.append((output, leaf.grad, *(p.grad.clone() for p in sampler.parameters())))
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain)


def test_inference_equals_training(tiny_config):
    """The fused weight and the chunks of inference change nothing, also after the weights have changed."""
    sampler = sampler_of(tiny_config)
    features, points, owners = inputs(tiny_config)
    for _ in range(2):
        expected = sampler(features, points, owners)
        with torch.no_grad():
            torch.testing.assert_close(sampler(features, points, owners), expected, atol=1e-5, rtol=1e-5)
            for parameter in sampler.parameters():
                parameter.add_(0.01)


def test_batched_equals_single(tiny_config):
    sampler = sampler_of(tiny_config)
    features, points, owners = inputs(tiny_config)
    with torch.no_grad():
        together = sampler(features, points, owners)
        for i, owner in enumerate(owners.tolist()):
            alone = sampler(features[owner : owner + 1], points[i : i + 1], torch.zeros(1, dtype=torch.long))
            torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
def test_where_features_are_read(transposed):
    """A map that holds its own coordinates is read at the right place, or, for converted checkpoints, the transposed one."""
    side = 24
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    features = torch.stack((columns, rows), dim=-1).float().reshape(1, side * side, 2)
    points = torch.tensor([[[0.25, 0.5], [0.0, 1.0]]])
    read = read_features(features, points, torch.zeros(1, dtype=torch.long), transposed)[0]
    expected = points[0] * (side - 1)
    torch.testing.assert_close(read, expected.flip(-1) if transposed else expected)


def test_transposition_is_one_config_field(tiny_config):
    features, points, owners = inputs(tiny_config)
    straight = sampler_of(tiny_config, transposed_region_points=False)
    transposed = sampler_of(tiny_config, transposed_region_points=True)
    side = int(tiny_config.num_patches**0.5)
    flipped = features.unflatten(1, (side, side)).transpose(1, 2).flatten(1, 2)
    torch.testing.assert_close(transposed(features, points, owners), straight(flipped, points, owners))
    assert not torch.allclose(transposed(features, points, owners), straight(features, points, owners))


# ---- points ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.floats(0.01, 1))
def test_points_are_a_function_of_the_mask(seed, density):
    mask = np.random.default_rng(seed).random((48, 64)) < density
    if not mask.any():
        return
    points = sample_points(mask, 100)
    assert torch.equal(points, sample_points(mask.copy(), 100))
    pixels = {(x / 64, y / 48) for y, x in np.argwhere(mask)}
    assert {(round(x, 5), round(y, 5)) for x, y in points.tolist()} <= {(round(x, 5), round(y, 5)) for x, y in pixels}
    x, y = min((x, y) for y, x in np.argwhere(mask))
    torch.testing.assert_close(points[0], torch.tensor([x / 64, y / 48]).float())


def test_points_are_random_in_training():
    mask = Box(4, 4, 40, 40).to_mask(SIZE)
    generator = torch.Generator().manual_seed(0)
    first, second = sample_points(mask, 64, generator), sample_points(mask, 64, generator)
    assert not torch.equal(first, second)
    again = sample_points(mask, 64, torch.Generator().manual_seed(0))
    assert torch.equal(first, again)


def test_small_regions_are_repeated_and_masks_with_one_box_differ():
    points = sample_points(Point(5, 5).to_mask(SIZE), 512)
    assert len(points) == 512
    assert len(points.unique(dim=0)) == 121
    ring = Box(4, 4, 40, 40).to_mask(SIZE)
    full = ring.copy()
    ring[10:30, 10:30] = False
    assert not torch.equal(sample_points(ring, 64), sample_points(full, 64))


def test_farthest_points_and_neighbors_against_brute_force():
    torch.manual_seed(0)
    points = torch.rand(3, 40, 2)
    chosen = farthest_points(points, 10)
    for p, indices in zip(points, chosen.tolist(), strict=True):
        expected = [0]
        for _ in range(9):
            distance = torch.stack([(p - p[i]).square().sum(-1) for i in expected]).amin(0)
            expected.append(int(distance.argmax()))
        assert indices == expected
    anchors = points[:, :5]
    for p, a, indices in zip(points, anchors, nearest_neighbors(points, anchors, 7).tolist(), strict=True):
        for anchor, row in zip(a, indices, strict=True):
            distance = (p - anchor).square().sum(-1)
            assert row == sorted(range(40), key=lambda i: (float(distance[i]), i))[:7]


def test_ties_go_to_the_lowest_index():
    points = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]])
    assert farthest_points(points, 3)[0].tolist() == [0, 1, 2]
    assert nearest_neighbors(points, points[:, :1], 3)[0, 0].tolist() == [0, 1, 2]


# ---- the simple adapter ----------------------------------------------------------------------------------------------


def test_mean_pool_adapter(tiny_config):
    config = type(tiny_config)(**tiny_config.to_dict() | {"region_encoder": "mean_pool"})
    torch.manual_seed(0)
    adapter = MeanPoolAdapter(config)
    features = torch.randn(1, config.num_patches, config.vision_config.hidden_size)
    masks = [Point(30, 20).to_mask(SIZE), np.zeros((48, 64), bool)]
    points = torch.stack([sample_points(mask, 512, repeat=False) for mask in masks])
    output = adapter(features, points, torch.zeros(2, dtype=torch.long))
    valid = points[0][~points[0].isnan().any(-1)]
    expected = read_features(adapter.linear(features), valid[None], torch.zeros(1, dtype=torch.long))[0].mean(0)
    torch.testing.assert_close(output[0], expected)
    assert not output[1].any()


def test_configuration_is_checked(tiny_config):
    values = tiny_config.to_dict()
    for change, says in [
        ({"sampler_stages": [40, 4]}, "sampler_stages must decrease"),
        ({"sampler_neighbors": 9}, "sampler_neighbors must be at most 8"),
        ({"vision_feature_layer": -5}, "vision_feature_layer must be in"),
    ]:
        with pytest.raises(ValueError, match=says):
            type(tiny_config)(**values | change)
