"""Choosing tokens, and turning them into text."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ferret_core.data.playground import playground_example
from ferret_core.engine import SamplingParams, ferret_prompt
from ferret_core.engine.detokenizer import Detokenizer
from ferret_core.engine.sampling import choose
from ferret_core.geometry import ImageSize
from ferret_core.predictor import FerretPredictor
from ferret_core.prompt import Turn, build_prompt


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
        ({"stop_token_ids": (-1,)}, "stop_token_ids: at most 8"),
        ({"repetition_penalty": 0}, "repetition_penalty: must be in"),
    ],
)
def test_bad_settings(setting, says):
    with pytest.raises(ValueError, match=says):
        SamplingParams(**setting)


def test_top_k_and_top_p_restrict():
    logits = torch.tensor([0.0, 3.0, 2.0, 1.0])
    assert {choose(logits, SamplingParams(temperature=1, top_k=1, seed=s), 0) for s in range(20)} == {1}
    assert {choose(logits, SamplingParams(temperature=1, top_p=0.6, seed=s), 0) for s in range(20)} == {1}
    assert {choose(logits, SamplingParams(temperature=1, top_k=2, seed=s), 0) for s in range(40)} == {1, 2}
    assert {choose(logits, SamplingParams(temperature=5, seed=s), 0) for s in range(60)} == {0, 1, 2, 3}


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


@pytest.mark.parametrize("which", ["playground", "original"])
@settings(max_examples=300)
@given(seed=st.integers(0, 2**32), length=st.integers(0, 40))
def test_pieces_are_the_text_of_any_tokens(which, playground_processor, original_processor, seed, length):
    tokenizer = (playground_processor if which == "playground" else original_processor).tokenizer
    tokens = random.Random(seed).choices(range(len(tokenizer)), k=length)
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.feed(token) for token in tokens]
    assert "".join(pieces) + detokenizer.finish() == tokenizer.decode(tokens, skip_special_tokens=True).strip()


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


def test_no_white_space_before_a_stop_text(playground_processor):
    """Whose first piece was held back."""
    tokenizer = playground_processor.tokenizer
    detokenizer = Detokenizer(tokenizer, ("a dog.",))
    pieces = [detokenizer.feed(token) for token in tokenizer("It is a dog.").input_ids[1:]]
    assert "".join(pieces) + detokenizer.finish() == "It is"


def test_what_was_said_becomes_less_likely():
    logits = torch.tensor([0.0, 3.0, 2.0, -1.0])
    assert choose(logits, SamplingParams(repetition_penalty=2), 0, [1, -200]) == 2
    assert choose(logits, SamplingParams(repetition_penalty=2), 0, [2, 3]) == 1
    assert choose(torch.tensor([-1.0, -1.5]), SamplingParams(repetition_penalty=2), 0, [0]) == 1


def test_the_smallest_temperature_is_greedy():
    assert choose(torch.tensor([0.0, 3.0, 2.0]), SamplingParams(temperature=1e-38), 0) == 1


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


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_an_answer_that_was_broken_off_goes_on_as_it_would_have(temperature):
    """Wherever it was broken off: the rest of the text, the number of tokens, the reason of the end."""
    predictor = FerretPredictor.from_pretrained("playground")
    model, processor, image = predictor.model, predictor.processor, playground_example("test", 0).image
    prompt, _ = build_prompt([Turn("Describe the image.")], {}, ImageSize(*image.size))
    features = predictor.encode_image(image)
    asked = ferret_prompt(model, processor.token_ids(prompt), features)
    params = SamplingParams(temperature=temperature, seed=5, max_new_tokens=30, stop=("dog",))
    whole = list(predictor.engine.stream(asked, params))
    assert len({delta.token_id for delta in whole}) > 9
    for end in range(0, len(whole), 3):
        begun = [delta.token_id for delta in whole[:end]]
        assert list(predictor.engine.stream(asked, params, begun)) == whole[end:]
