"""Asking: the same answer in pieces and at once, history that fits, and errors that say what to do."""

import io

import pytest
import torch
from PIL import Image

from ferret_core.answer import Answer, Finish, TextDelta
from ferret_core.engine import SamplingParams
from ferret_core.engine.detokenizer import Detokenizer
from ferret_core.engine.sampling import Sampler
from ferret_core.geometry import Box, ImageSize, Point, RegionError
from ferret_core.grounding import Span
from ferret_core.images import ImageError, open_image
from ferret_core.overlay import draw_overlay
from ferret_core.predictor import FerretPredictor
from ferret_core.prompt import PromptError, Turn
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
    from ferret_core.prompt import build_prompt

    prompt, mentioned = build_prompt([Turn("What is [region0]?")], {0: Box(5, 5, 50, 50)}, ImageSize(80, 60))
    inputs = predictor.processor(IMAGE, prompt, mentioned)
    output = predictor.model.generate(**inputs, max_new_tokens=24, do_sample=False, eos_token_id=2, pad_token_id=0)
    text = predictor.processor.tokenizer.decode(output[0, -24:], skip_special_tokens=True)
    assert answer.text == text.strip()


def test_greedy_tokens_of_the_original():
    """A recorded answer of the original implementation, through the predictor."""
    import json

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


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: must be at least 1"),
        ({"temperature": -1}, "temperature: must be in"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p: must be in"),
        ({"top_k": -1}, "top_k"),
        ({"stop": ("",)}, "stop: at most 8 texts"),
    ],
)
def test_bad_settings(setting, says):
    with pytest.raises(ValueError, match=says):
        SamplingParams(**setting)


def test_asking_needs_an_image(tiny_model, tiny_processor):
    with pytest.raises(RuntimeError, match="set_image"):
        FerretPredictor(tiny_model, tiny_processor).ask("What is this?")


# ---- sampling and text -----------------------------------------------------------------------------------------------


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


# ---- images ----------------------------------------------------------------------------------------------------------


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_images_are_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    assert open_image(encoded(IMAGE, "JPEG", exif=exif)).size == (60, 80)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not one of JPEG"),
        (b"GIF89a not really", "not one of JPEG"),
        (encoded(IMAGE)[:-2000], "truncated or damaged"),
        (encoded(Image.new("1", (9000, 9000))), r"9000 x 9000 pixels; at most 50,000,000"),
        (encoded(Image.new("1", (4, 400))), "sides must be at least 8"),
        (b"x" * (20 * 2**20 + 1), "bytes; at most 20,971,520"),
    ],
    ids=["empty", "not-an-image", "truncated", "bomb", "sliver", "too-large"],
)
def test_bad_images_say_what_is_wrong(data, says):
    with pytest.raises(ImageError, match=says):
        open_image(data)


def test_missing_file(predictor):
    with pytest.raises(FileNotFoundError, match="no such file"):
        predictor.set_image("nowhere.png")


def test_overlay_draws_inside_the_picture():
    spans = [Span("a dog", Box(2, 2, 60, 50), 0, 5, 6, 20), Span("", Box(0, 0, 80, 60), 0, 0, 0, 0)]
    picture = draw_overlay(IMAGE, spans, {0: Point(40, 30)})
    assert picture.size == IMAGE.size
    assert picture.tobytes() != IMAGE.tobytes()
