"""The same results on a GPU. Skipped where there is none."""

import random
from importlib.util import find_spec

import pytest
import torch
from transformers import LlamaConfig

from ferret_core.data.playground import playground_example
from ferret_core.engine import Engine, EngineSettings, Prompt, SamplingParams
from ferret_core.engine.attention import TorchAttention
from ferret_core.engine.cuda_graphs import CudaCapture
from ferret_core.engine.flash_attention import FlashAttention
from ferret_core.engine.runner import ModelRunner, fastest_attention
from ferret_core.model import FerretConfig, FerretForConditionalGeneration
from ferret_core.model.region_encoder import SpatialAwareSampler, farthest_points
from ferret_core.predictor import FerretPredictor
from ferret_core.training.loop import train
from tests.ferret_core.engine.letters import Letters
from tests.training import difference, losses, settings

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


def test_training_on_cuda_equals_cpu(run_values, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # the vision tower's convolutions have it on by default
    for device in ("cpu", "cuda"):
        train(settings(run_values, output=str(tmp_path / device), device=device))
    found = losses(tmp_path / "cuda")
    assert max(found.values()) - min(found.values()) > 0.05  # it learns, or the next line would say little
    assert difference(found, losses(tmp_path / "cpu")) < 1e-3


def test_training_in_bfloat16_learns(run_values, tmp_path):
    train(settings(run_values, device="cuda", precision="bf16", steps=30, eval_steps=30))
    found = list(losses(tmp_path / "run").values())
    assert sum(found[-5:]) / 5 < sum(found[:5]) / 5 - 0.3


def test_training_with_flash_attention_equals_packed(run_values, tmp_path):
    pytest.importorskip("flash_attn")
    for attention in ("packed", "flash_attention_2"):
        train(settings(run_values, output=str(tmp_path / attention), device="cuda", precision="bf16", attention=attention))
    assert difference(losses(tmp_path / "flash_attention_2"), losses(tmp_path / "packed")) < 0.02


# ---- the engine ------------------------------------------------------------------------------------------------------

MOST = 40


@pytest.fixture
def decoder(tiny_config) -> FerretForConditionalGeneration:
    """Wide enough for every kernel, with weights large enough for answers to differ."""
    text = LlamaConfig(
        vocab_size=1000, hidden_size=256, intermediate_size=512, num_hidden_layers=3, num_attention_heads=8, head_dim=64,
        num_key_value_heads=4, max_position_embeddings=2048, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        initializer_range=0.05,
    )  # fmt: skip
    torch.manual_seed(0)
    return FerretForConditionalGeneration(FerretConfig(text_config=text), parts=("decoder",)).eval().cuda()


def prompts(count=7):
    rng = random.Random(0)
    return [[rng.randrange(3, 1000) for _ in range(rng.choice([1, 20, 300, 900]))] for _ in range(count)]


def answers(engine, asked):
    found: list[list] = [[] for _ in asked]
    for prompt, received in zip(asked, found, strict=True):
        engine.submit(Prompt(tuple(prompt)), SamplingParams(max_new_tokens=MOST), received.append)
        engine.step()
    engine.drain()
    return [[delta.token_id for delta in received] for received in found]


def attentions(dtype):
    """All that there are here for a dtype."""
    found = [TorchAttention]
    if find_spec("triton"):
        from ferret_core.engine.triton_attention import TritonAttention

        found.append(TritonAttention)
    if dtype != torch.float32 and find_spec("flash_attn"):
        found.append(FlashAttention)
    return found


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("cache_tokens", [1024, 16384])
def test_engine_on_cuda_answers_as_generate(decoder, graphs, cache_tokens):
    """In float32, with every attention, with and without captured steps and preemption."""
    asked = prompts()
    with torch.no_grad():
        settings = {"max_new_tokens": MOST, "do_sample": False, "eos_token_id": 2, "pad_token_id": 0}
        expected = [
            decoder.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, ids.shape[1] :].tolist()
            for ids in (torch.tensor([prompt], device="cuda") for prompt in asked)
        ]
    assert len({tuple(answer) for answer in expected}) == len(asked)
    limits = EngineSettings(cache_tokens=cache_tokens, step_tokens=128, max_running=6)
    for attention in attentions(torch.float32):
        capture = CudaCapture(decoder.device) if graphs else None
        runner = ModelRunner(decoder, limits.blocks, limits.block_size, attention, capture, limits.max_running)
        assert answers(Engine(runner, Letters(), limits), asked) == expected, attention.__name__


def test_engine_in_bfloat16_stays_close_on_cuda(decoder):
    """Logits of all attentions, captured and not, against float32's, all along float32's answers."""
    asked = prompts()
    exact = Engine.for_model(decoder, Letters())
    forced = answers(exact, asked)
    expected = logits_along(Engine.for_model(decoder, Letters()), asked, forced)
    half = decoder.to(torch.bfloat16)
    for attention in attentions(torch.bfloat16):
        limits = EngineSettings(cache_tokens=16384, block_size=max(16, attention.block_multiple), max_running=8)
        for capture in (None, CudaCapture(half.device)):
            runner = ModelRunner(half, limits.blocks, limits.block_size, attention, capture, limits.max_running)
            difference = (logits_along(Engine(runner, Letters(), limits), asked, forced) - expected).abs()
            how = f"{attention.__name__}, captured: {capture is not None}"
            print(f"{how}: logits differ by {difference.mean():.3f}, at most {difference.max():.3f}")
            assert difference.mean() < 0.05 * expected.std(), how
            assert difference.max() < 0.5 * expected.std(), how


def logits_along(engine, asked, forced):
    """Float32 `(tokens, vocabulary)` of which all tokens of the answers are chosen; what is chosen are those of `forced`."""
    run, numbers, seen = engine.runner.run, {}, {}

    def noting(chunks):
        logits, tokens = run(chunks).float(), []
        for sequence, row in zip([chunk.sequence for chunk in chunks if chunk.chooses], logits, strict=True):
            number = numbers[id(sequence)]
            seen[number, sequence.answered] = row
            tokens.append(forced[number][sequence.answered])
        return torch.nn.functional.one_hot(torch.tensor(tokens, dtype=torch.long), logits.shape[-1]).float()

    engine.runner.run = noting
    for number, prompt in enumerate(asked):
        sequence = engine.submit(Prompt(tuple(prompt)), SamplingParams(max_new_tokens=MOST), lambda _: None)
        numbers[id(sequence)] = number
    engine.drain()
    return torch.stack([seen[key] for key in sorted(seen)])


def test_the_fastest_attention_is_chosen(decoder):
    assert fastest_attention(decoder) is attentions(torch.float32)[-1]
    assert fastest_attention(decoder.to(torch.bfloat16)) is attentions(torch.bfloat16)[-1]
    assert Engine.for_model(decoder, Letters()).runner.graphs


def test_farthest_points_on_cuda_are_those_of_the_cpu():
    torch.manual_seed(0)
    grid = torch.cartesian_prod(torch.arange(16), torch.arange(32)).float()[None] / 33
    for points in (torch.rand(40, 512, 2), grid):
        assert torch.equal(farthest_points(points.cuda(), 128).cpu(), farthest_points(points, 128))
