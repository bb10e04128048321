"""Two ranks over Gloo: the answers of one, and no process that outlives another."""

import multiprocessing
import os
import random
import subprocess
import sys
from functools import partial

import psutil
import pytest
import torch

from ferret_core.checkpoint.bundled import checkpoint_path
from ferret_core.engine import Engine, EngineSettings, Prompt, SamplingParams, Segment, ferret_prompt
from ferret_core.engine.tensor_parallel import TensorParallelRunner, shard
from ferret_core.model import FerretForConditionalGeneration
from tests.generation import GREEDY, MOST
from tests.processes import wait_until

PARAMS = SamplingParams(max_new_tokens=MOST)


def ranks(path, settings, **arguments) -> TensorParallelRunner:
    load = partial(FerretForConditionalGeneration.from_pretrained, str(path), dtype=torch.float32, parts=("decoder",))
    return TensorParallelRunner(load, 2, settings.blocks, settings.block_size, **arguments)


def followers() -> list[psutil.Process]:
    return [each for each in psutil.Process().children() if "--multiprocessing-fork" in " ".join(each.cmdline())]


@pytest.fixture
def checkpoint(tiny_config, tmp_path):
    """With fewer key heads than heads."""
    text = tiny_config.text_config
    text.num_attention_heads, text.num_key_value_heads, text.head_dim = 4, 2, 16
    torch.manual_seed(0)
    model = FerretForConditionalGeneration(tiny_config).eval()
    model.save_pretrained(tmp_path)
    return tmp_path, model


def test_greedy_tokens_are_those_of_generate(requests, playground_processor):
    """For any order of arrival and size of chunks, with what is in the cache and with preemption."""
    sizes = [EngineSettings(cache_tokens=700, step_tokens=step, max_running=8) for step in (8, 33, 512, 512)]
    with ranks(checkpoint_path("playground"), sizes[0]) as runner:
        for seed, limits in enumerate(sizes):
            rng, asked = random.Random(seed), []
            engine = Engine(runner, playground_processor.tokenizer, limits)
            for ids, features, regions, answer in rng.choices(requests, k=8):
                received: list = []
                engine.submit(ferret_prompt(runner.model, ids, features, regions), PARAMS, received.append)
                asked.append((received, answer))
                for _ in range(rng.randint(0, 9)):
                    engine.step()
            engine.drain()
            for received, answer in asked:
                assert [delta.token_id for delta in received] == answer
            assert engine.pool.available == engine.pool.count
            assert engine.scheduler.cached_tokens > 0


def test_a_rank_holds_its_share(checkpoint, playground_processor):
    path, model = checkpoint
    with torch.no_grad():
        expected = model.generate(torch.tensor([[5, 6, 7]]), **GREEDY)[0, 3:].tolist()
    whole = {name: weight.shape for name, weight in model.model.language_model.layers[0].named_parameters()}
    settings = EngineSettings(cache_tokens=256)
    with ranks(path, settings) as runner:
        engine = Engine(runner, playground_processor.tokenizer, settings)
        assert [delta.token_id for delta in engine.stream(Prompt((5, 6, 7)), PARAMS)] == expected
        layer = runner.model.model.language_model.layers[0]
        for name, weight in layer.named_parameters():
            assert weight.numel() == whole[name].numel() // (1 if "norm" in name else 2)
            assert weight.untyped_storage().nbytes() < sum(shape.numel() for shape in whole.values()) * 4
        assert len(runner._runner.cache.layers[0][0, 0, 0]) == 1  # of two key heads


def test_what_cannot_be_divided(tiny_model):
    with pytest.raises(ValueError, match="3 ranks cannot share num_attention_heads = 2 evenly"):
        shard(tiny_model, 0, 3)


def test_a_failure_before_the_step_leaves_the_ranks_together(checkpoint, playground_processor):
    """Rank 0 alone computes embeddings, before others hear of the step."""
    path, _ = checkpoint

    def fail(first, last):
        raise ValueError("no embeddings")

    settings = EngineSettings(cache_tokens=256)
    with ranks(path, settings) as runner:
        engine = Engine(runner, playground_processor.tokenizer, settings)
        with pytest.raises(ValueError, match="no embeddings"):
            list(engine.stream(Prompt((5, 6, 7), (Segment(1, 1, b"a", fail),)), PARAMS))
        assert list(engine.stream(Prompt((5, 6, 7)), PARAMS))
        processes = followers()
        assert len(processes) == 1
    assert not any(process.is_running() for process in processes)
    with pytest.raises(RuntimeError, match="the runner is closed"):
        runner.run([])


def test_a_rank_that_dies_in_a_step(checkpoint, playground_processor):
    path, _ = checkpoint
    settings, lost = EngineSettings(cache_tokens=256), []
    with ranks(path, settings, lost=lost.append) as runner:
        engine = Engine(runner, playground_processor.tokenizer, settings)
        received: list = []
        engine.submit(Prompt((5, 6, 7)), SamplingParams(max_new_tokens=200), received.append)
        engine.step()
        [process] = followers()
        process.suspend()  # so that rank 0 waits for it
        killer = subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(1); os.kill({process.pid}, 9)"])
        engine.step()
        killer.wait()
        assert "rank 1 ended with exit code -9" in str(received[-1])
        with pytest.raises(RuntimeError, match="rank 1 ended with exit code -9"):
            list(engine.stream(Prompt((5, 6, 7)), PARAMS))
    assert lost == ["rank 1 ended with exit code -9"]


def test_a_rank_that_dies_between_steps(checkpoint):
    lost: list = []
    with ranks(checkpoint[0], EngineSettings(cache_tokens=256), lost=lost.append):
        followers()[0].kill()
        wait_until(lambda: lost == ["rank 1 ended with exit code -9"])


LEADER = """
import sys, time
from tests.ferret_core.engine.test_tensor_parallel import EngineSettings, followers, ranks

if __name__ == "__main__":
    runner = ranks(sys.argv[1], EngineSettings(cache_tokens=256))
    print(followers()[0].pid, flush=True)
    time.sleep(600)
"""


def test_ranks_end_with_a_leader_that_is_killed(checkpoint, tmp_path):
    path, _ = checkpoint
    script = tmp_path / "leader.py"
    script.write_text(LEADER)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, str(script), str(path)], stdout=subprocess.PIPE, env=environment) as leader:
        try:
            follower = psutil.Process(int(leader.stdout.readline()))
        finally:
            leader.kill()
    wait_until(lambda: not follower.is_running(), seconds=60)


def only_on_rank_0(path):
    if multiprocessing.parent_process():
        raise OSError("no such disk here")
    return FerretForConditionalGeneration.from_pretrained(path)


def test_a_rank_that_cannot_load(checkpoint):
    with pytest.raises(RuntimeError, match="rank 1 ended with exit code 1"):
        TensorParallelRunner(partial(only_on_rank_0, str(checkpoint[0])), 2, 16, 16)
    assert not followers()


def test_a_checkpoint_that_is_not_there(tmp_path):
    with pytest.raises(OSError, match="no file named"):
        ranks(tmp_path, EngineSettings())
    assert not followers()
