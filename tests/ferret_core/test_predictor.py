"""Asking: the same answer in pieces and at once, history that fits, and errors that say what to do."""

import json

import pytest
from PIL import Image

from ferret_core.answer import Answer, Finish, TextDelta
from ferret_core.geometry import Box, ImageSize, Point, RegionError
from ferret_core.grounding import Span
from ferret_core.images import ImageError
from ferret_core.predictor import FerretPredictor
from ferret_core.prompt import PromptError, Turn, build_prompt
from tests.conftest import GOLDEN

IMAGE = Image.effect_noise((80, 60), 90).convert("RGB")


@pytest.fixture
def predictor(tiny_model, tiny_processor):
    predictor = FerretPredictor(tiny_model, tiny_processor)
    predictor.set_image(IMAGE)
    return predictor


def test_stream_equals_ask(predictor):
    events = list(predictor.stream("What is [region0]?", [Point(5, 5)], max_new_tokens=20))
    assert Answer.collect(events) == predictor.ask("What is [region0]?", [Point(5, 5)], max_new_tokens=20)
    assert isinstance(events[-1], Finish)
    assert events[-1].reason == "length"
    assert events[-1].usage.completion_tokens == 20
    assert all(isinstance(event, TextDelta | Span) for event in events[:-1])


def test_greedy_equals_generate(predictor):
    """The decoding engine against transformers' own."""
    answer = predictor.ask("What is [region0]?", [Box(5, 5, 50, 50)], max_new_tokens=24)
    prompt, mentioned = build_prompt([Turn("What is [region0]?")], {0: Box(5, 5, 50, 50)}, ImageSize(80, 60))
    inputs = predictor.processor(IMAGE, prompt, mentioned)
    output = predictor.model.generate(**inputs, max_new_tokens=24, do_sample=False, eos_token_id=2, pad_token_id=0)
    text = predictor.processor.tokenizer.decode(output[0, -24:], skip_special_tokens=True)
    assert answer.text == text.strip()


def test_greedy_tokens_of_the_original():
    """A recorded answer of the original implementation, through the predictor."""
    case = next(c for c in json.loads((GOLDEN / "model" / "cases.json").read_text())["cases"] if not c["regions"])
    predictor = FerretPredictor.from_pretrained(str(GOLDEN / "checkpoints" / "ferret-tiny"), device="cpu")
    predictor.set_image(GOLDEN / "images" / "landscape_640x427.png")
    answer = predictor.ask(case["question_rounds"][0][0], max_new_tokens=len(case["generated_ids"]))
    assert answer.text == case["decoded"]


def test_sampling_reproduces_and_varies(predictor):
    ask = lambda seed: predictor.ask("Describe the image.", temperature=1.5, seed=seed, max_new_tokens=12).text  # noqa: E731
    assert ask(1) == ask(1)
    assert len({ask(seed) for seed in range(4)}) > 1


def test_history_that_does_not_fit_goes_from_the_oldest_on(predictor):
    history = [Turn("What is [region0]?", f"Answer {i}. " + "It is a very long answer about nothing. " * 12) for i in range(8)]
    answer = predictor.ask("What is [region0]?", [Point(5, 5)], history, max_new_tokens=8)
    assert 0 < answer.usage.dropped_turns < 8
    assert answer.usage.prompt_tokens <= 1024 - 8
    kept = predictor.ask("What is [region0]?", [Point(5, 5)], history[answer.usage.dropped_turns :], max_new_tokens=8)
    assert (kept.text, kept.usage.dropped_turns) == (answer.text, 0)


def test_a_question_that_does_not_fit_is_refused(predictor):
    with pytest.raises(PromptError, match=r"question: \d+ tokens with its image and regions, but the context of 1024"):
        predictor.ask("word " * 1200)


@pytest.mark.parametrize(
    ("question", "regions", "error", "says"),
    [
        ("What is [region1]?", [Point(5, 5)], PromptError, r"\[region1\] is not among the regions; known: \[region0\]"),
        ("What is [region0]?", [Point(500, 5)], RegionError, r"regions\[0\]: point: x = 500 is outside the image \(80 x 60\)"),
        ("Hello </s>", [], PromptError, "reserved"),
        ("", [], PromptError, "must not be empty"),
    ],
)
def test_bad_questions(predictor, question, regions, error, says):
    with pytest.raises(error, match=says):
        predictor.ask(question, regions)


def test_asking_needs_an_image(tiny_model, tiny_processor):
    with pytest.raises(RuntimeError, match="set_image"):
        FerretPredictor(tiny_model, tiny_processor).ask("What is this?")


def test_missing_file(predictor):
    with pytest.raises(FileNotFoundError, match="no such file"):
        predictor.set_image("nowhere.png")


def test_a_picture_that_cannot_be_read_does_not_leave_the_one_before(predictor):
    with pytest.raises(ImageError):
        predictor.set_image(b"not a picture")
    with pytest.raises(RuntimeError, match="set_image"):
        predictor.ask("Describe the image.")


def test_room_for_the_answer_is_less_than_the_context(predictor):
    with pytest.raises(PromptError, match="max_new_tokens: must be less than the context of 1024 tokens"):
        predictor.ask("Describe the image.", max_new_tokens=1024)
