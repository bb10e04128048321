"""The engine in bfloat16 on the CPU's kernels: no result depends on the schedule, to the last bit."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ferret_core import cpu
from ferret_core.checkpoint.bundled import checkpoint_path
from ferret_core.engine import Engine, EngineSettings, Prompt, SamplingParams, ferret_prompt
from ferret_core.engine.cpu_runner import CpuRunner
from ferret_core.model import FerretForConditionalGeneration
from tests.ferret_core.engine.letters import Letters
from tests.generation import MOST

pytestmark = pytest.mark.skipif(not cpu.available(), reason="needs AVX512-BF16, and a compiler when it was installed")


def load(dtype):
    return FerretForConditionalGeneration.from_pretrained(checkpoint_path("playground"), dtype=dtype).eval()


@pytest.fixture(scope="module")
def model():
    return load(torch.bfloat16)


@pytest.fixture(scope="module")
def requests(model):
    """Prompts about two pictures, with up to three regions, some of them long."""
    config, rng, made = model.config, random.Random(0), []
    torch.manual_seed(0)
    pictures = [torch.randn(1, 196, config.vision_config.hidden_size) for _ in range(2)]
    for index in range(8):
        features, count = pictures[index % 2], rng.choice([0, 1, 3])
        words = [rng.randrange(50, 2000) for _ in range(rng.choice([3, 20, 300]))]
        ids = [1, 60, *[config.image_token_id] * features.shape[1], *[config.region_token_id] * count, *words]
        made.append((ids, features, torch.randn(count, config.text_config.hidden_size) if count else None))
    return made


def engine_of(model, **limits):
    engine = Engine.for_model(model, Letters(), EngineSettings(**limits))
    assert isinstance(engine.runner, CpuRunner)
    return engine


def ask_all(engine, model, requests, numbers=None, steps=lambda: 0):
    """The tokens of all answers, and the logits that each token was chosen by; half of them greedy."""
    run, seen = engine.runner.run, {}

    def noting(chunks):
        logits = run(chunks)
        rows = iter(logits)
        for chunk in chunks:
            for guessed in range(chunk.choices):  # those after a wrong guess come again
                seen.setdefault(id(chunk.sequence), {})[len(chunk.sequence) + guessed] = next(rows).clone()
        return logits

    engine.runner.run = noting
    received, sequences = [[] for _ in requests], []
    for number, request, deltas in zip(numbers or range(len(requests)), requests, received, strict=True):
        params = SamplingParams(max_new_tokens=MOST, temperature=number % 2 * 0.9, seed=number)
        sequences.append(engine.submit(ferret_prompt(model, *request), params, deltas.append))
        for _ in range(steps()):
            engine.step()
    engine.drain()
    engine.runner.run = run
    assert engine.pool.available == engine.pool.count
    logits = [
        torch.stack([rows[place] for place in range(len(sequence.prompt.token_ids), len(sequence))])
        for sequence, rows in ((sequence, seen[id(sequence)]) for sequence in sequences)
    ]
    return [[delta.token_id for delta in deltas] for deltas in received], logits


@pytest.fixture(scope="module")
def alone(model, requests):
    """Tokens and logits of each request by itself, and without guesses."""
    results = []
    for number, request in enumerate(requests):
        engine = engine_of(model)
        engine.scheduler.free_positions = 1
        [tokens], [logits] = ask_all(engine, model, [request], [number])
        results.append((tokens, logits))
    return results


@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**32),
    block_size=st.sampled_from([16, 32, 64]),
    step_tokens=st.sampled_from([8, 33, 512]),
    cache_tokens=st.sampled_from([640, 8192]),
    threads=st.sampled_from([1, 2]),
)
def test_no_schedule_changes_a_bit(model, requests, alone, seed, block_size, step_tokens, cache_tokens, threads):
    """Order of arrival, size of chunks, state of the cache, preemption, guesses, threads."""
    rng, before = random.Random(seed), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        engine = engine_of(model, cache_tokens=cache_tokens, block_size=block_size, step_tokens=step_tokens, max_running=8)
        tokens, logits = ask_all(engine, model, requests, steps=lambda: rng.randint(0, 6))
    finally:
        torch.set_num_threads(before)
    for number, (expected_tokens, expected_logits) in enumerate(alone):
        assert tokens[number] == expected_tokens
        assert torch.equal(logits[number], expected_logits)
    assert engine.scheduler.drafted_tokens


def test_logits_are_close_to_those_in_float32(model, requests, alone):
    """The largest are about 20."""
    exact = load(torch.float32)
    engine = Engine.for_model(exact, Letters())
    _, logits = ask_all(engine, exact, requests)
    difference = torch.cat([(a[0] - b[0]).abs() for a, (_, b) in zip(logits, alone, strict=True)])
    print(f"logits differ by {difference.mean():.3f}, at most {difference.max():.3f}")
    assert difference.mean() < 0.05
    assert difference.max() < 1


def test_int8_is_close(model, requests, alone):
    quantized = load(torch.bfloat16)
    _, logits = ask_all(engine_of(quantized, quantization="int8"), quantized, requests)
    difference = torch.cat([(a[0] - b[0]).abs() for a, (_, b) in zip(logits, alone, strict=True)])
    print(f"logits differ by {difference.mean():.3f}, at most {difference.max():.3f}")
    assert 0 < difference.mean() < 0.5


def test_what_a_gpu_or_float32_model_is_told():
    with pytest.raises(ValueError, match="quantization: int8 needs a bfloat16 model"):
        Engine.for_model(load(torch.float32), Letters(), EngineSettings(quantization="int8"))


def test_packed_weights_stay_as_they_are(model):
    with pytest.raises(ValueError, match="packed in bfloat16 already: load the model again for int8"):
        engine_of(model, quantization="int8")
    with pytest.raises(RuntimeError, match="load it again to move or convert it"):
        model.float()


def test_blocks_are_rounded_up(model):
    assert engine_of(model, block_size=20).pool.size == 32


def test_the_model_still_answers_by_itself(model, requests):
    """Through the packed layers, which two engines share."""
    first, second = engine_of(model), engine_of(model)
    layer = model.model.language_model.layers[0]
    assert first.runner.decoder.layers[0].gate.panels == second.runner.decoder.layers[0].gate.panels
    assert first.runner.decoder.layers[0].gate.panels == layer.mlp.gate_proj.panels.data_ptr()
    prompt = torch.tensor([[1, 5, 60, 70, 80]])
    with torch.no_grad():
        theirs = model(prompt).logits[0, -1].float()
    ours: list = []
    run = first.runner.run
    first.runner.run = lambda chunks: ours.append(run(chunks)) or ours[-1]
    list(first.stream(Prompt(tuple(prompt[0].tolist())), SamplingParams(max_new_tokens=1)))
    assert (ours[0][0] - theirs).abs().max() < 1


def test_fewer_key_heads_than_heads(tiny_config):
    """With a width of the head that is not hidden_size / heads, an odd vocabulary and other rotations."""
    text = tiny_config.text_config
    text.hidden_size, text.intermediate_size, text.num_attention_heads, text.num_key_value_heads = 64, 192, 6, 2
    text.head_dim, text.vocab_size, text.rope_parameters = 128, 301, {"rope_type": "default", "rope_theta": 500.0}
    torch.manual_seed(0)
    exact = FerretForConditionalGeneration(tiny_config).eval()
    rounded = FerretForConditionalGeneration(tiny_config).eval()
    rounded.load_state_dict(exact.state_dict())
    rounded = rounded.to(torch.bfloat16)
    exact.load_state_dict(rounded.float().state_dict())
    rounded = rounded.to(torch.bfloat16)
    prompts = [([*torch.randint(3, 300, (length,)).tolist()], None) for length in (1, 5, 40, 170)]
    expected, found = (
        ask_all(engine, each, prompts)[1]
        for each, engine in ((exact, Engine.for_model(exact, Letters())), (rounded, engine_of(rounded, step_tokens=64)))
    )
    for one, other in zip(expected, found, strict=True):
        assert (one[0] - other[0]).norm() < 0.02 * one[0].norm()


def test_what_is_no_number_stays_with_its_owner(model):
    engine = engine_of(model, cache_tokens=128)
    prompt, params = Prompt((5, 6, 7)), SamplingParams(max_new_tokens=30)
    clean = [delta.token_id for delta in engine.stream(prompt, params)]
    engine.runner._keys.fill_(float("nan"))
    engine.runner._values.fill_(float("nan"))
    again: list = []
    engine.submit(prompt, params, again.append)
    engine.submit(Prompt(tuple(range(3, 21))), params, lambda _: None)
    engine.drain()
    assert [delta.token_id for delta in again] == clean
