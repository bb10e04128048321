"""Messages between the deployments, to and from the types of `ferret_core`."""

from __future__ import annotations

import torch
from ferret.v1 import llm_decoder_pb2, sampling_pb2, tensor_pb2
from torch import Tensor

from ferret_core.engine import Delta, SamplingParams
from services.errors import InvalidRequestError
from services.wire import REASONS_FROM_PROTO, REASONS_TO_PROTO

_DTYPES = {
    tensor_pb2.Tensor.TYPE_FLOAT32: torch.float32,
    tensor_pb2.Tensor.TYPE_FLOAT16: torch.float16,
    tensor_pb2.Tensor.TYPE_BFLOAT16: torch.bfloat16,
}
_TYPES = {dtype: kind for kind, dtype in _DTYPES.items()}


def tensor_to_proto(tensor: Tensor) -> tensor_pb2.Tensor:
    """Any float tensor, bit for bit."""
    data = tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return tensor_pb2.Tensor(type=_TYPES[tensor.dtype], shape=tensor.shape, data=data)


def tensor_from_proto(message: tensor_pb2.Tensor) -> Tensor:
    """Inverse of `tensor_to_proto`."""
    return torch.frombuffer(bytearray(message.data), dtype=_DTYPES[message.type]).reshape(tuple(message.shape))


def sampling_from_proto(message: sampling_pb2.Sampling) -> SamplingParams:
    """Raises `InvalidRequestError` naming the setting that is out of range."""
    settings = {field.name: value for field, value in message.ListFields()}
    try:
        return SamplingParams(**settings | {"stop": tuple(message.stop), "stop_token_ids": tuple(message.stop_token_ids)})
    except ValueError as error:
        raise InvalidRequestError(str(error)) from error


def delta_to_proto(delta: Delta) -> llm_decoder_pb2.DecodeResponse:
    """One step of the decoder."""
    reason = REASONS_TO_PROTO[delta.finish_reason] if delta.finish_reason else sampling_pb2.FINISH_REASON_UNSPECIFIED
    return llm_decoder_pb2.DecodeResponse(
        text=delta.text, completion_tokens=delta.completion_tokens, finish_reason=reason, token_id=delta.token_id
    )


def delta_from_proto(message: llm_decoder_pb2.DecodeResponse) -> Delta:
    """Inverse of `delta_to_proto`."""
    return Delta(message.text, message.completion_tokens, REASONS_FROM_PROTO.get(message.finish_reason), message.token_id)
