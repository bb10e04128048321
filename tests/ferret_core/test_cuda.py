"""The same results on a GPU. Skipped where there is none."""

import pytest
import torch

from ferret_core.data.playground import playground_example
from ferret_core.model.region_encoder import SpatialAwareSampler
from ferret_core.predictor import FerretPredictor

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_sampler_on_cuda_equals_cpu(tiny_config):
    torch.manual_seed(0)
    sampler = SpatialAwareSampler(tiny_config).eval()
    features = torch.randn(2, tiny_config.num_patches, tiny_config.vision_config.hidden_size)
    points, owners = torch.rand(5, tiny_config.sampler_points, 2), torch.arange(5) % 2
    with torch.inference_mode():
        expected = sampler(features, points, owners)
        for plain in (False, True):
            found = sampler.cuda()(features.cuda(), points.cuda(), owners.cuda(), plain=plain)
            torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=1e-4)


def test_bundled_checkpoint_answers_on_cuda_as_on_cpu():
    on_cpu = FerretPredictor.from_pretrained("playground", device="cpu")
    on_cuda = FerretPredictor.from_pretrained("playground", device="cuda", dtype=torch.float32)
    for index in range(8):
        example = playground_example("test", index, 1, kinds=("name",))
        answers = []
        for predictor in (on_cpu, on_cuda):
            predictor.set_image(example.image)
            answers.append(predictor.ask(example.record.turns[0].question, example.record.regions).text)
        assert answers[0] == answers[1]
