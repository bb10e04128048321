"""What a GPU does, as far as a CPU can: captured steps by what computes again, flash-attn by what its documentation says."""

import random
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ferret_core.engine import Engine, EngineSettings, Prompt, SamplingParams, Segment
from ferret_core.engine.attention import TorchAttention
from ferret_core.engine.flash_attention import FlashAttention
from ferret_core.engine.runner import ModelRunner
from ferret_core.model import FerretForConditionalGeneration
from tests.ferret_core.engine.letters import Letters

MOST = 20
GREEDY = {"max_new_tokens": MOST, "do_sample": False, "eos_token_id": 2, "pad_token_id": 0}


@pytest.fixture
def model(tiny_config) -> FerretForConditionalGeneration:
    """Two query heads for each key head, and answers that are not all the same."""
    text = tiny_config.text_config
    text.num_attention_heads, text.num_key_value_heads, text.head_dim, text.vocab_size = 4, 2, 16, 300
    text.tie_word_embeddings = False
    torch.manual_seed(0)
    made = FerretForConditionalGeneration(tiny_config).eval()
    with torch.no_grad():
        for weight in made.model.language_model.parameters():
            if weight.ndim == 2:
                weight.mul_(8)
    return made


class ComputeAgain:
    """Captures as CUDA does: what it captured reads and writes the same memory each time, whatever is in it."""

    def __init__(self) -> None:
        self.replays = 0

    def __call__(self, function):
        output = function()

        def replay() -> None:
            self.replays += 1
            with torch.inference_mode():
                output.copy_(function())

        return replay, output


def answers_of(runner, limits, rng, prompts) -> list[list[int]]:
    engine = Engine(runner, Letters(), limits)
    answers: list[list] = [[] for _ in prompts]
    for prompt, answer in zip(prompts, answers, strict=True):
        engine.submit(prompt, SamplingParams(max_new_tokens=MOST), answer.append)
        for _ in range(rng.randint(0, 5)):
            engine.step()
    engine.drain()
    assert engine.pool.available == engine.pool.count
    return [[delta.token_id for delta in answer] for answer in answers]


def prompts_and_answers(model) -> tuple[list[Prompt], list[list[int]]]:
    """With embeddings among the tokens, and what `generate` says to them."""
    rng, prompts, expected = random.Random(0), [], []
    for number in range(5):
        ids = [rng.randrange(3, 300) for _ in range(rng.randint(2, 40))]
        place, rows = rng.randrange(len(ids)), torch.randn(1, 32, generator=torch.Generator().manual_seed(number)) / 8
        prompts.append(Prompt(tuple(ids), (Segment(place, 1, bytes([number]), lambda *_, rows=rows: rows),)))
        with torch.no_grad():
            embeddings = model.model.language_model.embed_tokens(torch.tensor([ids]))
            embeddings[0, place] = rows
            answer = model.generate(inputs_embeds=embeddings, **GREEDY)
        expected.append(answer[0].tolist())
    assert len({token for answer in expected for token in answer}) > 10
    return prompts, expected


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])  # nothing changes the model
@given(
    seed=st.integers(0, 2**32),
    size=st.sampled_from([1, 3, 16]),
    step_tokens=st.sampled_from([7, 64]),
    max_running=st.sampled_from([1, 3, 6]),
    tight=st.booleans(),
)
def test_captured_steps_are_those_of_generate(model, seed, size, step_tokens, max_running, tight):
    """Rows that fill up, blocks that change owners, answers that come and go, preemption: the tokens are the same."""
    rng = random.Random(seed)
    prompts, expected = prompts_and_answers(model)
    limits = EngineSettings(
        cache_tokens=90 if tight else 1024, block_size=size, step_tokens=step_tokens, max_running=max_running
    )
    capture = ComputeAgain()
    runner = ModelRunner(model, limits.blocks, size, TorchAttention, capture, max_running)
    assert answers_of(runner, limits, rng, prompts) == expected
    assert capture.replays > MOST / 2


def test_what_fills_up_writes_to_no_sequence(model):
    """Three rows in a step of four: it changes the cache where these three go on, and in the block that nobody has."""
    limits = EngineSettings(cache_tokens=256, block_size=4, max_running=4)
    runner = ModelRunner(model, limits.blocks, 4, TorchAttention, ComputeAgain(), 4)
    assert [*runner.graphs._steps] == [(4, 64), (2, 64), (1, 64)]
    engine = Engine(runner, Letters(), limits)
    prompts, _ = prompts_and_answers(model)
    sequences = [engine.submit(prompt, SamplingParams(max_new_tokens=MOST), lambda _: None) for prompt in prompts[:3]]
    engine.step()
    for layer in runner.cache.layers:
        layer[:, runner.cache.scratch] = torch.nan
    before = torch.stack(runner.cache.layers)
    engine.step()
    changed = torch.stack(runner.cache.layers).ne(before).flatten(-2).any(-1).any(0).any(0)
    changed[runner.cache.scratch] = False
    last = [sequence.computed - 1 for sequence in sequences]
    expected = {(sequence.blocks[at // 4], at % 4) for sequence, at in zip(sequences, last, strict=True)}
    assert {(block, place) for block, place in changed.nonzero().tolist()} == expected
    assert all(sequence.answered == 2 for sequence in sequences)


@pytest.mark.parametrize(("most", "size", "widths"), [(128, 16, [16, 32, 64, 128]), (100, 16, [16, 32, 64, 100]), (3, 16, [3])])
def test_widths_of_captured_tables(most, size, widths):
    assert TorchAttention.table_widths(most, size) == widths
    assert FlashAttention.table_widths(most, size) == [most]


# ---- flash-attn ------------------------------------------------------------------------------------------------------


def paged(cache, table, end):
    """Of one sequence, `(end, heads, width)`."""
    return cache[table.long()].flatten(0, 1)[:end]


def attend(queries, keys, values):
    """Causal, aligned to the bottom right corner: `(length, heads, width)` over `(end, key heads, width)`."""
    mask = torch.ones(len(queries), len(keys), dtype=torch.bool).tril(len(keys) - len(queries))
    states = (each.transpose(0, 1) for each in (queries, keys, values))
    return torch.nn.functional.scaled_dot_product_attention(*states, mask, enable_gqa=True).transpose(0, 1)


def check(queries, keys, values, tables, *counts):
    """What flash-attn 2.8 checks."""
    assert keys.shape == values.shape
    assert keys.shape[1] % 256 == 0
    assert queries.shape[-2] % keys.shape[-2] == 0
    assert all(each.stride(-1) == 1 for each in (queries, keys, values, tables))
    assert all(each.dtype == torch.int32 and each.is_contiguous() for each in counts)
    assert tables.dtype == torch.int32


def flash_attn_with_kvcache(q, k_cache, v_cache, k=None, v=None, cache_seqlens=None, block_table=None, causal=False):
    check(q, k_cache, v_cache, block_table, cache_seqlens)
    assert causal
    assert k is v is None
    assert q.shape[0] == len(block_table) == len(cache_seqlens)
    rows = zip(q, block_table, cache_seqlens.tolist(), strict=True)
    return torch.stack([attend(row, paged(k_cache, table, end), paged(v_cache, table, end)) for row, table, end in rows])


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, causal=False, block_table=None
):
    check(q, k, v, block_table, cu_seqlens_q, cu_seqlens_k)
    lengths, ends = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
    assert causal
    assert (max(lengths), max(ends)) == (max_seqlen_q, max_seqlen_k)
    assert (cu_seqlens_q[0], cu_seqlens_k[0], sum(lengths)) == (0, 0, len(q))
    rows = zip(q.split(lengths), block_table, ends, strict=True)
    return torch.cat([attend(row, paged(k, table, end), paged(v, table, end)) for row, table, end in rows])


@pytest.mark.parametrize("captured", [False, True])
def test_flash_attention_is_asked_as_documented(model, captured, monkeypatch):
    """By a stand-in in PyTorch, over several blocks of 256 and with other sequences beside: the tokens of `generate`."""
    functions = SimpleNamespace(flash_attn_with_kvcache=flash_attn_with_kvcache, flash_attn_varlen_func=flash_attn_varlen_func)
    monkeypatch.setitem(sys.modules, "flash_attn", functions)
    limits = EngineSettings(cache_tokens=2048, block_size=256, step_tokens=200, max_running=4)
    runner = ModelRunner(model, limits.blocks, 256, FlashAttention, ComputeAgain() if captured else None, 4)
    rng = random.Random(0)
    prompts, expected = prompts_and_answers(model)
    long = [rng.randrange(3, 300) for _ in range(600)]
    with torch.no_grad():
        expected.append(model.generate(torch.tensor([long]), **GREEDY)[0, 600:].tolist())
    assert answers_of(runner, limits, rng, [*prompts, Prompt(tuple(long))]) == expected
