"""What the engine's benchmark rests on: its decoders do the same, one at a time runs, and seconds are told apart rightly."""

import json
from pathlib import Path

import pytest
import torch
from candidate import Candidate, Run
from decoders import ContinuousBatching, OneAtATime
from engine_report import lines
from transformers import LlamaConfig, LlamaForCausalLM

PROMPTS = [[5, 6, 7, 8, 9], [40, 41, 42], [5, 6, 7, 8, 10, 11]]
TOKENS = 6


@pytest.fixture
def settings(tmp_path) -> dict:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    model = LlamaForCausalLM(config)
    model.lm_head.weight.data *= 50  # the likeliest tokens stand out
    model.save_pretrained(tmp_path)
    return {"weights": str(tmp_path), "device": "cpu", "dtype": "float32", "cache_tokens": 1024}


def test_all_give_the_same_answers_and_ours_stands_still_between_them(settings):
    plain = OneAtATime(**settings).answer(PROMPTS, TOKENS)
    moments = [moment for answer in plain for _, moment in answer]
    assert moments == sorted(moments)
    expected = [[token for token, _ in answer] for answer in plain]
    assert len({tuple(answer) for answer in expected}) == len(PROMPTS)
    batching = ContinuousBatching(**settings)
    try:
        assert [[token for token, _ in answer] for answer in batching.answer(PROMPTS, TOKENS)] == expected
    finally:
        batching.manager.stop(block=True)
    with Candidate.start("ours", settings) as ours:
        state = Path(f"/proc/{ours.process.pid}/stat")
        for _ in range(2):
            assert state.read_text().split(") ")[1][0] == "T"
            run = ours.ask(PROMPTS, TOKENS)
            assert run.answers == expected
            assert 0 < run.first <= run.seconds
        assert ours.memory["peak"] >= ours.memory["loaded"] > 0
    assert not state.exists()


def test_a_process_that_ends_is_told():
    with pytest.raises(RuntimeError, match="vLLM: ended with 1; its last words are above"):
        Candidate("vLLM", "false", {})


def test_decoding_is_counted_from_when_all_have_begun():
    run = Run([[1, 2, 3], [4, 5, 6]], [[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]])
    assert (run.seconds, run.first, run.total, run.decode) == (4, 1.5, 1.5, 1.5)


def test_who_was_not_asked_is_in_the_table_all_the_same():
    figures = {"total, tokens/s": 2.0, "decode, tokens/s": None, "first token, s": 0.5}
    slow, fast = {"cold": figures, "warm": figures}, {"cold": figures, "warm": figures | {"decode, tokens/s": 3.0}}
    memory = {name: {"loaded": 2**20, "peak": 2**21} for name in ("slow", "fast")}
    result = {
        "hardware": {"cpu": "a CPU", "threads": 2, "torch": "2"},
        "weights": "random",
        "dtype": "bfloat16",
        "tokens": {"prompt": 600, "common": 560, "tokens": 64, "question": 36},
        "requests": {"4": {"slow": slow, "fast": fast}, "16": {"fast": fast}},
        "second turn": {name: {"first turn, s": 1.0, "second turn, s": 0.1, "share": 0.1} for name in memory},
        "memory, bytes": memory | {"keys and values of a position": 23040},
        "roofline": {"memory, bytes/s": 2e10, "matrices, FLOP/s": 3e11},
    }
    table = list(lines(json.loads(json.dumps(result))))
    assert "| slow, cold | 2.0 / – / 0.5 | – |" in table
    assert "| fast, warm | 2.0 / 3.0 / 0.5 | 2.0 / 3.0 / 0.5 |" in table
    assert "| fast | 0.1 s | 10% | 1 MiB / 2 MiB | – / – |" in table
