"""The engine against transformers' `generate`, one prompt at a time, in float32: the same tokens, whatever the schedule."""

import random
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ferret_core.conversation import prepare_question
from ferret_core.data.playground import playground_example
from ferret_core.engine import Engine, EngineSettings, Prompt, SamplingParams, ferret_prompt
from ferret_core.geometry import ImageSize, Polygon
from ferret_core.model import FerretForConditionalGeneration
from tests.ferret_core.engine.letters import Letters
from tests.generation import GREEDY, MOST


@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**32),
    block_size=st.sampled_from([1, 3, 16, 64]),
    step_tokens=st.sampled_from([8, 33, 512]),
    cache_tokens=st.sampled_from([400, 700, 8192]),
)
def test_greedy_tokens_are_those_of_generate(
    module_model, playground_processor, requests, seed, block_size, step_tokens, cache_tokens
):
    """For any order of arrival, size of chunks, state of the cache, and with preemption."""
    rng = random.Random(seed)
    limits = EngineSettings(cache_tokens=cache_tokens, block_size=block_size, step_tokens=step_tokens, max_running=8)
    engine = Engine.for_model(module_model, playground_processor.tokenizer, limits)
    asked = []
    for ids, features, regions, answer in rng.choices(requests, k=8):
        received: list = []
        prompt = ferret_prompt(module_model, ids, features, regions)
        begun = min(rng.choice([0, 0, 5]), len(answer) - 1)
        engine.submit(prompt, SamplingParams(max_new_tokens=MOST), received.append, answer[:begun])
        asked.append((received, answer, begun))
        for _ in range(rng.randint(0, 9)):
            engine.step()
    engine.drain()
    for received, answer, begun in asked:
        tokens = [delta.token_id for delta in received]
        assert tokens == answer[begun:]
        assert received[-1].completion_tokens == len(answer)
    assert engine.pool.available == engine.pool.count


def test_seeded_answers_are_the_same_alone_and_among_others(module_model, playground_processor, requests):
    def ask(engine, number, receiver):
        ids, features, regions, _ = requests[number]
        params = SamplingParams(max_new_tokens=MOST, temperature=1.0, top_p=0.9, top_k=40, seed=number)
        engine.submit(ferret_prompt(module_model, ids, features, regions), params, receiver)

    together: list[list] = [[] for _ in requests]
    engine = Engine.for_model(module_model, playground_processor.tokenizer)
    for number, received in enumerate(together):
        ask(engine, number, received.append)
    engine.drain()
    for number, received in enumerate(together):
        alone: list = []
        engine = Engine.for_model(module_model, playground_processor.tokenizer, EngineSettings(step_tokens=64))
        ask(engine, number, alone.append)
        while engine.step():
            pass
        assert alone == received


def test_two_shapes_with_the_same_bounding_box_share_only_what_comes_before(module_model, playground_processor):
    """Two halves of a picture: the same tokens, other embeddings, and what is asked about is something else."""
    image = playground_example("test", 0).image
    size, model = ImageSize(*image.size), module_model.model
    width, height = size.width - 1, size.height - 1
    halves = Polygon(((0, 0), (width, 0), (0, height))), Polygon(((width, 0), (0, height), (width, height)))
    prompts = []
    with torch.no_grad():
        features = model.encode_images(playground_processor.pixel_values([image]))
        for half in halves:
            question = prepare_question(
                "What is [region0]?",
                [half],
                (),
                processor=playground_processor,
                context_length=2048,
                size=size,
                max_new_tokens=30,
            )
            regions = model.encode_regions(features, playground_processor.region_points(half, size)[None])
            prompts.append(ferret_prompt(module_model, question.input_ids, features, regions))
    assert prompts[0].token_ids == prompts[1].token_ids
    engine = Engine.for_model(module_model, playground_processor.tokenizer, EngineSettings(block_size=1))
    texts, found = [], []
    for prompt in (*prompts, prompts[0]):
        before = engine.scheduler.cached_tokens
        texts.append("".join(delta.text for delta in engine.stream(prompt, SamplingParams(max_new_tokens=30))))
        found.append(engine.scheduler.cached_tokens - before)
    assert "ice cream" in texts[0]
    assert "broom" in texts[1]
    assert texts[2] == texts[0]
    assert found == [0, prompts[0].segments[1].start, len(prompts[0].token_ids) - 1]


def test_the_model_still_answers_by_itself(module_model, playground_processor, requests):
    """Its weights are views of the engine's."""
    engine = Engine.for_model(module_model, playground_processor.tokenizer)
    ids, features, regions, answer = requests[0]
    with torch.no_grad():
        embeddings = module_model.model.embed_prompt(torch.tensor([ids]), features, regions)
        again = module_model.generate(inputs_embeds=embeddings, **GREEDY)
    assert again[0].tolist() == answer
    fused, layer = engine.runner.layers[0].gate_up, module_model.model.language_model.layers[0]
    assert layer.mlp.gate_proj.weight.data_ptr() == fused.data_ptr()


def test_bfloat16_stays_close(module_model, playground_processor, requests):
    """Logits of all prompts at once, in chunks, against float32 one at a time; the largest logits are about 20."""
    engine = Engine.for_model(module_model, playground_processor.tokenizer, EngineSettings(step_tokens=100))
    half = FerretForConditionalGeneration(module_model.config).eval()
    half.load_state_dict(module_model.state_dict())
    half = half.to(torch.bfloat16)
    other = Engine.for_model(half, playground_processor.tokenizer, EngineSettings(step_tokens=512))
    exact, rounded = ([_first_logits(each, requests, model)] for each, model in ((engine, module_model), (other, half)))
    difference = (torch.cat(exact) - torch.cat(rounded).float()).abs()
    print(f"logits differ by {difference.mean():.3f}, at most {difference.max():.3f}")
    assert difference.mean() < 0.1
    assert difference.max() < 1


def _first_logits(engine, requests, model):
    """Of each prompt's next token."""
    run, seen = engine.runner.run, {}

    def noting(chunks):
        logits = run(chunks)
        for sequence, row in zip([chunk.sequence for chunk in chunks if chunk.chooses], logits, strict=True):
            seen[id(sequence)] = row
        return logits

    engine.runner.run = noting
    sequences = [
        engine.submit(ferret_prompt(model, ids, features, regions), SamplingParams(max_new_tokens=1), lambda _: None)
        for ids, features, regions, _ in requests
    ]
    engine.drain()
    return torch.stack([seen[id(sequence)] for sequence in sequences])


def test_any_thread_may_ask_and_cancel(module_model, playground_processor, requests):
    """While another steps."""
    engine = Engine.for_model(module_model, playground_processor.tokenizer)
    received: list[list] = [[] for _ in range(12)]

    def ask(number):
        ids, features, regions, answer = requests[number % 4]
        limit = SamplingParams(max_new_tokens=MOST)
        sequence = engine.submit(ferret_prompt(module_model, ids, features, regions), limit, received[number].append)
        while len(received[number]) < (3 if number % 3 == 0 else len(answer)):
            time.sleep(0.001)
        engine.cancel(sequence)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        engine.step()
    engine.drain()
    for number in range(12):
        tokens, answer = [delta.token_id for delta in received[number]], requests[number % 4][3]
        assert tokens == answer[: len(tokens)]
        assert len(tokens) >= (3 if number % 3 == 0 else len(answer))
    assert engine.pool.available == engine.pool.count


def test_fewer_key_heads_than_heads(tiny_config):
    """As in LLaMA's later models; the width of a head is not hidden_size / heads."""
    text = tiny_config.text_config
    text.num_attention_heads, text.num_key_value_heads, text.head_dim, text.vocab_size = 4, 2, 16, 300
    torch.manual_seed(0)
    model = FerretForConditionalGeneration(tiny_config).eval()
    prompts = [torch.randint(3, 300, (length,)).tolist() for length in (5, 40, 70)]
    with torch.no_grad():
        expected = [model.generate(torch.tensor([prompt]), **GREEDY)[0, len(prompt) :].tolist() for prompt in prompts]
    engine = Engine.for_model(model, Letters(), EngineSettings(step_tokens=20, max_running=4))
    answers: list[list] = [[] for _ in prompts]
    for prompt, answer in zip(prompts, answers, strict=True):
        engine.submit(Prompt(tuple(prompt)), SamplingParams(max_new_tokens=MOST), answer.append)
    engine.drain()
    assert [[delta.token_id for delta in answer] for answer in answers] == expected


def test_what_is_no_number_stays_with_its_owner(tiny_model):
    """Blocks that held it are used by others next, at their ends and in front of them."""
    engine = Engine.for_model(tiny_model, Letters(), EngineSettings(cache_tokens=64, block_size=16))
    clean = [delta.token_id for delta in engine.stream(Prompt((5, 6, 7)), SamplingParams(max_new_tokens=9))]
    for layer in engine.runner.cache.layers:
        layer.fill_(float("nan"))
    told: list = []
    for _ in range(2):
        engine.submit(Prompt((5, 6, 7)), SamplingParams(max_new_tokens=9), told.append)
    engine.submit(Prompt(tuple(range(3, 21))), SamplingParams(max_new_tokens=9), lambda _: None)
    engine.drain()
    assert [delta.token_id for delta in told[::2]] == [delta.token_id for delta in told[1::2]] == clean


def test_two_engines_of_a_model_share_its_weights(module_model, playground_processor):
    first, second = (Engine.for_model(module_model, playground_processor.tokenizer) for _ in range(2))
    for one, other in zip(first.runner.layers, second.runner.layers, strict=True):
        assert one.gate_up.data_ptr() == other.gate_up.data_ptr()
        assert one.query_key_value.shape == other.query_key_value.shape
        assert torch.equal(one.query_key_value, other.query_key_value)


@pytest.mark.parametrize(
    ("ids", "image", "regions", "says"),
    [
        ([1, -200, -200], torch.zeros(1, 3, 32), None, "the prompt has 2 image tokens, but 3 image patches were given"),
        ([1, -200, 5, -200], torch.zeros(1, 2, 32), None, "the image tokens of the prompt are apart"),
        ([1, 5], None, torch.zeros(1, 32), "the prompt has 0 <region_fea> tokens, but 1 regions were given"),
        ([1, -200], torch.zeros(1, 1, 31), None, "image features: 31 wide, but the model takes 32"),
        ([1, -200], torch.full((1, 1, 32), float("nan")), None, "image features: some are no numbers"),
    ],
)
def test_features_that_do_not_fit_the_prompt(tiny_model, ids, image, regions, says):
    with pytest.raises(ValueError, match=says):
        ferret_prompt(tiny_model, ids, image, regions)
