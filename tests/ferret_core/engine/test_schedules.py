"""Any mix of requests, in any order, on a toy model whose next token depends on all that it looks back on."""

import random
from hashlib import blake2b
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ferret_core.engine import Engine, EngineSettings, Prompt, QueueFullError, SamplingParams, Segment
from ferret_core.engine.drafter import Drafter
from ferret_core.engine.prompt import content
from ferret_core.engine.sampling import choose
from ferret_core.engine.sequence import Sequence
from tests.ferret_core.engine.letters import Letters

VOCABULARY, EOS, STOP = 50, Letters.eos_token_id, 4


def likelihoods(held: list[bytes]) -> torch.Tensor:
    """Of every token to be the next, by all positions."""
    seed = int.from_bytes(blake2b(b"".join(held), digest_size=4).digest())
    return torch.rand(VOCABULARY, generator=torch.Generator().manual_seed(seed))


class ToyRunner:
    """Keeps in every slot what its position holds, and reads it back through the block tables."""

    def __init__(self, settings: EngineSettings, free_positions: int = 1) -> None:
        self.free_positions = free_positions
        self.size, self.context_length, self.vocabulary = settings.block_size, 1000, VOCABULARY
        self.slots: dict[int, bytes] = {}
        self.positions = 0

    def run(self, chunks):
        assert [chunk.length > 1 for chunk in chunks] == sorted(chunk.length > 1 for chunk in chunks)
        rows = []
        for chunk in chunks:
            sequence = chunk.sequence
            end = sequence.computed + chunk.length
            assert len(sequence.blocks) * self.size >= end
            tokens = [*sequence.token_ids[: sequence.computed], *chunk.token_ids]
            assert len(tokens) == end
            for position in range(sequence.computed, end):
                self.slots[self._slot(sequence, position)] = held_at(tokens, sequence.prompt.segments, position)
            self.positions += chunk.length
            held = [self.slots[self._slot(sequence, position)] for position in range(end)]
            rows += [likelihoods(held[:choice]) for choice in range(end - chunk.choices + 1, end + 1)]
        return torch.stack(rows) if rows else torch.empty(0, VOCABULARY)

    def _slot(self, sequence, position):
        return sequence.blocks[position // self.size] * self.size + position % self.size


def held_at(tokens, segments, position):
    return content(tokens, segments, position, position + 1)


def alone(prompt: Prompt, params: SamplingParams) -> list[int]:
    """The answer by the rule itself."""
    tokens = list(prompt.token_ids)
    answer: list[int] = []
    while len(answer) < params.max_new_tokens and not {EOS, *params.stop_token_ids} & {*answer[-1:]}:
        held = [held_at(tokens, prompt.segments, i) for i in range(len(tokens))]
        answer.append(choose(likelihoods(held), params, len(answer), tokens))
        tokens.append(answer[-1])
    return answer


def draw_params(rng: random.Random) -> SamplingParams:
    """Half of them greedy."""
    return SamplingParams(
        max_new_tokens=rng.randint(1, 25),
        temperature=rng.choice([0, 1.5]),
        seed=rng.randint(0, 9),
        stop_token_ids=rng.choice([(), (STOP,)]),
        repetition_penalty=rng.choice([1, 1.5]),
    )


def check_blocks(engine: Engine) -> None:
    """Each is free, kept, or in a table; and none of the free ones is known."""
    pool = engine.pool
    held = {block for sequence in engine.scheduler.running for block in sequence.blocks}
    assert sorted([*pool._unused, *pool._kept, *held]) == list(range(pool.count))
    assert not set(pool._unused) & set(pool._key_of)
    for sequence in engine.scheduler.running:
        keys = Sequence(Prompt(tuple(sequence.token_ids), sequence.prompt.segments), sequence.params, None, None)
        assert all(key == keys.key(number, pool.size) for number, key in enumerate(sequence._keys))


def drafting(engine: Engine, rng: random.Random) -> None:
    """What is guessed is right or wrong by chance."""
    submit = engine.submit

    def submitting(prompt, params, receiver, answer=()):
        right = [*prompt.token_ids, *alone(prompt, params)]
        sequence = submit(prompt, params, receiver, answer)
        sequence._drafter = SimpleNamespace(
            draft=lambda tokens, most: tuple(
                token if rng.random() < 0.7 else 5 for token in right[len(tokens) :][: rng.randint(0, most)]
            )
        )
        return sequence

    engine.submit = submitting


def draw_prompt(rng: random.Random) -> Prompt:
    """Begins as others do, with or without an image and a region."""
    start = rng.choice([0, 3, 8])
    tokens = [1] * start + [-1] * 5 + [7, 8, 9] * rng.randint(0, 5)
    segments = [Segment(start, 5, bytes([rng.randint(0, 1)]), lambda: torch.empty(0))]
    if rng.random() < 0.5:
        segments.append(Segment(len(tokens), 1, bytes([rng.randint(5, 6)]), lambda: torch.empty(0)))
        tokens += [3]
    return Prompt((*tokens, *(rng.randint(3, 9) for _ in range(rng.randint(1, 12)))), tuple(segments))


@given(
    seed=st.integers(0, 2**32),
    block_size=st.integers(1, 9),
    step_tokens=st.integers(1, 40),
    max_running=st.integers(1, 8),
    tight=st.booleans(),
    free_positions=st.integers(1, 9),
)
def test_every_answer_is_as_it_would_be_alone(seed, block_size, step_tokens, max_running, tight, free_positions):
    """Whatever arrives when, is cancelled, shared, preempted, guessed or cut into chunks; and no block is lost."""
    rng = random.Random(seed)
    cache = 90 if tight else 2000
    settings = EngineSettings(
        cache_tokens=cache, block_size=block_size, step_tokens=step_tokens, max_running=min(max_running, step_tokens)
    )
    engine = Engine(ToyRunner(settings, free_positions), Letters(), settings)
    drafting(engine, rng)
    asked = []
    for _ in range(12):
        prompt, params, received = draw_prompt(rng), draw_params(rng), []
        expected = alone(prompt, params)
        begun = rng.choice([0, 0, len(expected) // 2])
        reason = "stop" if expected[-1] in (EOS, *params.stop_token_ids) else "length"
        asked.append((engine.submit(prompt, params, received.append, expected[:begun]), expected[begun:], reason, received))
        for _ in range(rng.randint(0, 6)):
            engine.step()
        if rng.random() < 0.2:
            engine.cancel(rng.choice(asked)[0])
        check_blocks(engine)
    while engine.step():
        check_blocks(engine)
    for sequence, expected, reason, received in asked:
        tokens = [delta.token_id for delta in received]
        assert tokens == expected or (sequence.cancelled and tokens == expected[: len(tokens)])
        assert sequence.cancelled or received[-1].finish_reason == reason
    assert engine.pool.available == engine.pool.count
    assert not engine.scheduler.running
    assert not engine.scheduler.waiting


def test_a_long_soak_loses_no_block_and_preempts_often():
    rng = random.Random(0)
    settings = EngineSettings(cache_tokens=160, block_size=4, step_tokens=24, max_running=8)
    engine = Engine(ToyRunner(settings), Letters(), settings)
    told = []
    for _ in range(1500):
        engine.submit(draw_prompt(rng), SamplingParams(max_new_tokens=rng.randint(1, 30)), told.append)
        while len(engine.scheduler.waiting) > 6:
            engine.step()
    engine.drain()
    assert sum(delta.finish_reason is not None for delta in told) == 1500
    assert engine.scheduler.preemptions > 100
    assert engine.scheduler.cached_tokens > 10_000
    assert engine.pool.available == engine.pool.count


def engine_of(**settings):
    settings = EngineSettings(**settings)
    return Engine(ToyRunner(settings), Letters(), settings)


def ask(engine, tokens, segments=(), most=5):
    return [
        delta.token_id for delta in engine.stream(Prompt(tuple(tokens), tuple(segments)), SamplingParams(max_new_tokens=most))
    ]


def test_what_is_known_is_not_computed_again():
    """A follow-up pays for its new words, and the last block of what went before."""
    engine = engine_of(block_size=4)
    prompt = list(range(3, 40))
    answer = ask(engine, prompt, most=6)
    before = engine.runner.positions
    ask(engine, [*prompt, *answer, 5, 6, 7], most=1)
    assert engine.runner.positions - before <= 3 + 4 + 1
    before = engine.runner.positions
    assert ask(engine, prompt, most=6) == answer
    assert engine.runner.positions - before <= 4 + 6


def test_what_stands_for_another_picture_or_region_is_not_shared():
    """The tokens are the same, the digests are not: nothing from the segment on may be reused."""
    engine = engine_of(block_size=4)
    tokens = [5] * 8 + [3] + [6] * 12
    answers = set()
    for digest in (b"a", b"b"):
        before = engine.runner.positions
        answers.add(tuple(ask(engine, tokens, [Segment(8, 1, digest, lambda: torch.empty(0))], most=3)))
        assert engine.runner.positions - before >= len(tokens) - 8
    assert len(answers) == 2


def test_a_running_answer_is_not_held_up_by_a_long_prompt():
    """It gets its token in every step while the prompt is read in pieces."""
    engine = engine_of(block_size=4, step_tokens=8, max_running=4)
    told: list = []
    engine.submit(Prompt((5, 6)), SamplingParams(max_new_tokens=30), told.append)
    engine.step()
    other: list = []
    engine.submit(Prompt(tuple(range(3, 43)) * 3), SamplingParams(max_new_tokens=1), other.append)
    while not other:
        before = len(told)
        engine.step()
        assert len(told) == before + 1 or told[-1].finish_reason


def test_what_is_being_computed_is_waited_for_and_not_computed_twice():
    """Two prompts that begin alike and come together; a third that does not is not held up."""
    engine = engine_of(block_size=4, step_tokens=64)
    told: list = []
    for tokens in ([*range(3, 23), 5], [*range(3, 23), 6], [7] * 5):
        engine.submit(Prompt(tuple(tokens)), SamplingParams(max_new_tokens=1), told.append)
    assert engine.step() == 2
    assert engine.step() == 1
    assert len(told) == 3
    assert engine.runner.positions == 21 + 5 + 1


def test_the_oldest_goes_on_when_memory_is_short():
    engine = engine_of(cache_tokens=32, block_size=4)
    finished: list[str] = []
    for name in "abc":

        def receive(delta, name=name):
            if delta.finish_reason:
                finished.append(name)

        engine.submit(Prompt((5, 6, 7, 8, 9)), SamplingParams(max_new_tokens=20), receive)
    engine.drain()
    assert finished == ["a", "b", "c"]
    assert engine.scheduler.preemptions


@pytest.mark.parametrize(
    ("tokens", "params", "answer", "says"),
    [
        ([5] * 21, {"max_new_tokens": 20}, (), "up to 40 tokens, 10 blocks, but the cache has 8 blocks of 4"),
        ([5] * 981, {"max_new_tokens": 21}, (), "up to 1001 tokens, but the model looks back on 1000"),
        ([5, 50], {}, (), "there is no token 50: the model has 50"),
        ([5, -1], {}, (), "there is no token -1"),
        ([5], {"max_new_tokens": 2}, (5, 6), "answer: its 2 tokens are all of it"),
        ([5], {"max_new_tokens": 9}, (6, EOS), "answer: its 2 tokens are all of it"),
        ([5], {"max_new_tokens": 9, "stop": ("\u4e06",)}, (5, 6), "answer: its 2 tokens are all of it"),
        ([], {}, (), "the prompt is empty"),
    ],
)
def test_refusals(tokens, params, answer, says):
    engine = engine_of(cache_tokens=32, block_size=4)
    with pytest.raises(ValueError, match=says):
        engine.submit(Prompt(tuple(tokens)), SamplingParams(**params), print, answer)


def test_the_form_of_boxes_and_what_stood_before_are_guessed():
    numbers = range(10)
    box = [20, 1, 21, 2, 21, 3, 21, 4, 22]  # [1, 2, 3, 4]
    drafter = Drafter(numbers)
    tokens = [30, 31, *box, 23, 32, 33]
    assert drafter.draft(tokens, 5) == ()  # never seen
    for of_another_box, guess in (
        ([20, 7], (21,)),  # then a number, which is not guessed
        ([21, 7], (21,)),
        ([21, 9], (21,)),
        ([21, 9], (22, 23, 32, 33, 20)),
    ):
        tokens += of_another_box
        assert drafter.draft(tokens, 5) == Drafter(numbers).draft(tokens, 5) == guess
    assert drafter.draft(tokens, 2) == (22, 23)
    assert Drafter(numbers).draft([5], 3) == Drafter(numbers).draft([], 3) == ()


def test_a_model_may_know_more_tokens_than_its_tokenizer():
    class Fewer(Letters):
        def convert_ids_to_tokens(self, token):
            return super().convert_ids_to_tokens(token) if token < 30 else None

        def decode(self, tokens, skip_special_tokens):
            return "x" * len(tokens)

    settings = EngineSettings()
    assert ask(Engine(ToyRunner(settings, 6), Fewer(), settings), [5, 6]) == ask(engine_of(), [5, 6])


def test_guesses_save_steps_where_nobody_else_runs():
    """An answer that repeats itself: the engine's own guesses."""
    answer = [10, 11, 12, 13] * 10

    class Repeating(ToyRunner):
        def run(self, chunks):
            ends = [end for chunk in chunks for end in range(chunk.end - chunk.choices, chunk.end)]
            return torch.eye(VOCABULARY)[[answer[end % 4] for end in ends]]

    def steps(free_positions):
        engine, told, count = Engine(Repeating(EngineSettings(), free_positions), Letters(), EngineSettings()), [], 0
        engine.submit(Prompt((5,)), SamplingParams(max_new_tokens=40), told.append)
        while engine.step():
            count += 1
        assert [delta.token_id for delta in told] == answer
        assert [delta.completion_tokens for delta in told] == [*range(1, 41)]
        return count, engine.scheduler.accepted_tokens, engine.scheduler.drafted_tokens

    assert steps(1) == (40, 0, 0)
    count, accepted, drafted = steps(6)
    assert count < 15
    assert accepted == 40 - count
    assert drafted >= accepted


def test_a_full_queue():
    """Those who left are not in it any more."""
    engine = engine_of(max_waiting=1)
    first = engine.submit(Prompt((5,)), SamplingParams(max_new_tokens=2), lambda _: None)
    with pytest.raises(QueueFullError, match="1 requests wait already"):
        engine.submit(Prompt((5,)), SamplingParams(max_new_tokens=2), print)
    engine.cancel(first)
    engine.submit(Prompt((5,)), SamplingParams(max_new_tokens=2), lambda _: None)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"block_size": 0}, "block_size: must be at least 1"),
        ({"max_running": 600}, "max_running: 600 answers do not fit a step of step_tokens = 512"),
        ({"cache_tokens": 0}, "cache_tokens: must be at least 1"),
    ],
)
def test_bad_engine_settings(setting, says):
    with pytest.raises(ValueError, match=says):
        EngineSettings(**setting)


def test_a_deadline_ends_what_is_late():
    engine = engine_of()
    told: list = []
    engine.submit(Prompt((5,)), SamplingParams(), told.append, deadline=0)
    assert not engine.step()
    assert isinstance(told[0], TimeoutError)
    assert engine.pool.available == engine.pool.count


def failing(chunks):
    raise RuntimeError("out of order")


def test_a_step_that_fails_ends_what_it_computed_and_nothing_else():
    engine = engine_of(max_running=1, step_tokens=8)
    run, told, other = engine.runner.run, [], []
    engine.submit(Prompt((5,)), SamplingParams(max_new_tokens=3), told.append)
    engine.submit(Prompt((6,)), SamplingParams(max_new_tokens=3), other.append)
    engine.runner.run = failing
    engine.step()
    assert engine.failures == 1
    engine.runner.run = run
    engine.drain()
    assert [str(error) for error in told] == ["out of order"]
    assert other[-1].finish_reason
    assert engine.failures == 0
    assert engine.pool.available == engine.pool.count


def test_what_is_no_number_ends_one_answer_and_not_the_others():
    engine = engine_of()
    run, told, other = engine.runner.run, [], []
    bad = engine.submit(Prompt((5,)), SamplingParams(max_new_tokens=3), told.append)
    engine.submit(Prompt((6,)), SamplingParams(max_new_tokens=3), other.append)

    def spoiled(chunks):
        logits = run(chunks)
        for row, chunk in enumerate(chunks):
            if chunk.sequence is bad:
                logits[row, 7] = float("nan")
        return logits

    engine.runner.run = spoiled
    engine.drain()
    assert isinstance(told[0], FloatingPointError)
    assert other[-1].finish_reason
    assert engine.pool.available == engine.pool.count


def test_a_text_that_cannot_be_made_ends_one_answer_and_not_the_others(monkeypatch):
    engine = engine_of()
    told, other = [], []
    bad = engine.submit(Prompt((5,)), SamplingParams(max_new_tokens=3), told.append)
    engine.submit(Prompt((6,)), SamplingParams(max_new_tokens=3), other.append)
    monkeypatch.setattr(bad.detokenizer, "feed", failing)
    engine.drain()
    assert [str(error) for error in told] == ["out of order"]
    assert other[-1].finish_reason


def test_a_receiver_may_ask_again():
    engine, told = engine_of(), []

    def receive(delta):
        told.append(delta)
        if len(told) == 1:
            engine.submit(Prompt((6,)), SamplingParams(max_new_tokens=1), told.append)

    engine.submit(Prompt((5,)), SamplingParams(max_new_tokens=1), receive)
    engine.drain()
    assert len(told) == 2
