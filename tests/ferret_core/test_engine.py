"""Choosing tokens, and turning them into text."""

import pytest
import torch

from ferret_core.engine import SamplingParams
from ferret_core.engine.detokenizer import Detokenizer
from ferret_core.engine.sampling import Sampler


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: must be at least 1"),
        ({"temperature": -1}, "temperature: must be in"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p: must be in"),
        ({"top_k": -1}, "top_k"),
        ({"seed": -1}, "seed: must be in"),
        ({"stop": "dog"}, "stop: at most 8 texts"),
        ({"stop": ("",)}, "stop: at most 8 texts"),
    ],
)
def test_bad_settings(setting, says):
    with pytest.raises(ValueError, match=says):
        SamplingParams(**setting)


def test_top_k_and_top_p_restrict():
    logits = torch.tensor([0.0, 3.0, 2.0, 1.0])
    assert {Sampler(SamplingParams(temperature=1, top_k=1, seed=s)).choose(logits) for s in range(20)} == {1}
    assert {Sampler(SamplingParams(temperature=1, top_p=0.6, seed=s)).choose(logits) for s in range(20)} == {1}
    assert {Sampler(SamplingParams(temperature=1, top_k=2, seed=s)).choose(logits) for s in range(40)} == {1, 2}
    assert {Sampler(SamplingParams(temperature=5, seed=s)).choose(logits) for s in range(60)} == {0, 1, 2, 3}


@pytest.mark.parametrize("which", ["playground", "original"])
def test_detokenizer_adds_up(which, playground_processor, original_processor):
    """Pieces join to the whole text, and none of them ends in half a character."""
    tokenizer = (playground_processor if which == "playground" else original_processor).tokenizer
    for text in ("It is a dog [1, 22, 333, 1000].", "naïve café 東京 🙂 two  spaces", "\n a\n\nb  "):
        tokens = tokenizer(text).input_ids[1:]
        detokenizer = Detokenizer(tokenizer)
        pieces = [detokenizer.feed(token) for token in tokens]
        assert not any("�" in piece for piece in pieces)
        assert "".join(pieces) + detokenizer.finish() == text.strip()


def test_stop_texts(playground_processor):
    tokenizer = playground_processor.tokenizer
    tokens = tokenizer("It is a dog. It is a cat.").input_ids[1:]
    detokenizer, text = Detokenizer(tokenizer, ("cat",)), ""
    for token in tokens:
        text += detokenizer.feed(token)
        if detokenizer.stopped:
            break
    assert text == "It is a dog. It is a"
    assert detokenizer.finish() == ""


def test_the_smallest_temperature_is_greedy():
    assert Sampler(SamplingParams(temperature=1e-38)).choose(torch.tensor([0.0, 3.0, 2.0])) == 1


def test_bytes_of_a_broken_character_wait_for_their_end(original_processor):
    """LLaMA's tokenizer spells what it lacks in bytes: a later byte may change what the ones before it mean."""
    tokenizer = original_processor.tokenizer
    tokens = tokenizer.convert_tokens_to_ids(["<0x79>", "<0x88>"]) + tokenizer("dog").input_ids[1:]
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.feed(token) for token in tokens]
    assert "".join(pieces) + detokenizer.finish() == tokenizer.decode(tokens).strip()


def test_a_stop_text_at_the_very_end(original_processor):
    tokenizer = original_processor.tokenizer
    detokenizer = Detokenizer(tokenizer, ("🙂",))
    pieces = [detokenizer.feed(token) for token in tokenizer("a dog 🙂").input_ids[1:]]
    assert "".join(pieces) + detokenizer.finish() == "a dog"
    assert detokenizer.stopped
