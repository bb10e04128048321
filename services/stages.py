"""The three deployments of a model, of which any replica may go away at any time.

What was asked of a lost replica is asked of another. A stream of text goes on where it broke off: the next decoder is given
the tokens that are there, and chance is a function of seed and position, so the answer is what it would have been.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from ferret.v1.image_encoder_pb2 import EncodeImageRequest, EncodeImageResponse
from ferret.v1.llm_decoder_pb2 import DecodeRequest
from ferret.v1.region_sampler_pb2 import EncodeRegionsRequest, EncodeRegionsResponse
from ferret.v1.sampling_pb2 import Sampling
from ferret.v1.tensor_pb2 import Tensor
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from ferret_core.engine import Delta
from ferret_core.geometry import ImageSize, Region
from services.metrics import REPLICAS_LOST, STAGE_SECONDS, TOKENS
from services.stage_wire import delta_from_proto
from services.status_codes import REPLICA_LOST
from services.wire import region_to_proto

logger = logging.getLogger("ray.serve")

Result = TypeVar("Result")

_REPLICAS = 4
"""That are asked before a request is given up."""
_PAUSE_SECONDS = 0.2


class Stages:
    """The deployments of one model."""

    def __init__(self, name: str, encoder: DeploymentHandle, sampler: DeploymentHandle, decoder: DeploymentHandle) -> None:
        self.name = name
        self.encoder, self.sampler, self.decoder = encoder, sampler, decoder.options(stream=True)

    async def encode_image(self, data: bytes) -> EncodeImageResponse:
        """The feature map of an encoded image, before the projector."""
        request = EncodeImageRequest(image_bytes=data)
        return await self._asked("image_encoder", lambda: self.encoder.EncodeImage.remote(request))

    async def encode_regions(self, image_features: Tensor, size: ImageSize, regions: Sequence[Region]) -> EncodeRegionsResponse:
        """One row for each region of an image of `size` pixels."""
        request = EncodeRegionsRequest(
            image_features=image_features,
            image_width=size.width,
            image_height=size.height,
            regions=map(region_to_proto, regions),
        )
        return await self._asked("region_sampler", lambda: self.sampler.EncodeRegions.remote(request))

    async def decode(
        self,
        image_id: str,
        input_ids: Sequence[int],
        image_features: Tensor,
        region_features: Tensor | None,
        sampling: Sampling,
    ) -> AsyncGenerator[Delta]:
        """The answer to a prompt about an image, a token each. Closing the iterator ends the generation."""
        request = DecodeRequest(
            input_ids=input_ids, image_features=image_features, region_features=region_features, sampling=sampling
        )
        TOKENS.inc(len(input_ids), tags={"model": self.name, "kind": "prompt"})
        decoder, replica = self.decoder.options(session_id=image_id), 1
        while True:
            deltas = decoder.Decode.remote(request)
            ended = False
            try:
                async for message in deltas:
                    TOKENS.inc(tags={"model": self.name, "kind": "answer"})
                    request.answer_ids.append(message.token_id)
                    ended = bool(message.finish_reason)
                    yield delta_from_proto(message)
                return
            except (*REPLICA_LOST, BackPressureError) as error:
                if ended:
                    return
                if isinstance(error, BackPressureError) and not request.answer_ids:  # nobody has heard anything yet
                    raise
                await self._lost("llm_decoder", error, replica)
                replica += 1
            finally:
                if not ended:
                    with suppress(Exception):  # of a replica that is gone
                        deltas.cancel()

    async def _asked(self, stage: str, ask: Callable[[], Awaitable[Result]]) -> Result:
        """The result of a call without side effects."""
        started, replica = time.monotonic(), 1
        while True:
            try:
                result = await ask()
                STAGE_SECONDS.observe(time.monotonic() - started, tags={"model": self.name, "stage": stage})
                return result
            except REPLICA_LOST as error:
                await self._lost(stage, error, replica)
                replica += 1

    async def _lost(self, stage: str, error: Exception, replica: int) -> None:
        """Leaves time for the router to learn of it. Raises the error if too many replicas were lost."""
        REPLICAS_LOST.inc(tags={"model": self.name, "stage": stage})
        if replica == _REPLICAS:
            raise error
        logger.warning("a replica of %s went away (%s); asking another", stage, type(error).__name__)
        await asyncio.sleep(_PAUSE_SECONDS * replica)
