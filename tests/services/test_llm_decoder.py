"""A decoder by itself: what it tells Ray Serve, which asks several times a second. The model is the bundled one."""

import asyncio

import pytest
import torch
from ferret.v1.llm_decoder_pb2 import DecodeRequest
from ferret.v1.sampling_pb2 import Sampling

from ferret_core.engine import SamplingParams, ferret_prompt
from ferret_core.predictor import FerretPredictor
from services.autoscaling import TOKENS_IN_USE
from services.llm_decoder import LLMDecoder
from services.settings import DecoderSettings, ModelSettings
from services.stage_wire import tensor_to_proto


@pytest.fixture
def decoder():
    decoder = LLMDecoder(ModelSettings(path="playground"))
    yield decoder
    decoder.decoder.close()


def test_an_idle_decoder_is_asked_again_and_again(decoder):
    """A replica that raises is scaled by nothing, and Serve only logs it."""
    for _ in range(3):
        assert decoder.record_autoscaling_stats() == {TOKENS_IN_USE: 0}


def test_two_ranks_answer_as_the_predictor_does():
    predictor = FerretPredictor.from_pretrained("playground", dtype=torch.float32)
    config, features = predictor.model.config, torch.randn(1, 196, predictor.model.config.vision_config.hidden_size)
    ids = [1, 60, *[config.image_token_id] * 196, 70, 80]
    prompt = ferret_prompt(predictor.model, ids, features)
    expected = [delta.text for delta in predictor.engine.stream(prompt, SamplingParams(max_new_tokens=20))]
    decoder = LLMDecoder(ModelSettings(path="playground", dtype="float32", llm_decoder=DecoderSettings(tensor_parallel=2)))
    try:
        request = DecodeRequest(input_ids=ids, image_features=tensor_to_proto(features), sampling=Sampling(max_new_tokens=20))

        async def answer():
            return [response.text async for response in decoder.Decode(request)]

        assert asyncio.run(answer()) == expected
    finally:
        decoder.decoder.close()
        decoder.engine.runner.close()
