"""The LLMDecoder deployment: the language model behind `ferret.v1.LLMDecoderService`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from ferret.v1.llm_decoder_pb2 import DecodeRequest, DecodeResponse

from ferret_core.engine import Delta, decode
from services.loading import load_part
from services.settings import ModelSettings
from services.stage_wire import delta_to_proto, sampling_from_proto, tensor_from_proto


class LLMDecoder:
    """Prompts to streams of text. Streams take turns, a token each, on one thread beside the event loop."""

    def __init__(self, settings: ModelSettings) -> None:
        self.model, self.processor = load_part(settings, "decoder")
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="decoder")

    async def Decode(self, request: DecodeRequest) -> AsyncIterator[DecodeResponse]:  # noqa: N802 (the RPC's name)
        """Streams the answer to a prompt; a stream that is cancelled ends after the step it is in."""
        loop = asyncio.get_running_loop()
        deltas = await loop.run_in_executor(self.thread, self._start, request)
        while delta := await loop.run_in_executor(self.thread, next, deltas, None):
            yield delta_to_proto(delta)

    @torch.inference_mode()
    def _start(self, request: DecodeRequest) -> Iterator[Delta]:
        device = self.model.device
        features = tensor_from_proto(request.image_features).to(device)
        regions = tensor_from_proto(request.region_features).to(device) if request.HasField("region_features") else None
        ids = torch.tensor([list(request.input_ids)], device=device)
        embeddings = self.model.model.embed_prompt(ids, features, regions)
        return decode(self.model, self.processor.tokenizer, embeddings, sampling_from_proto(request.sampling))
