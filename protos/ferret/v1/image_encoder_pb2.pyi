from ferret.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EncodeImageRequest(_message.Message):
    __slots__ = ("image_bytes",)
    IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    image_bytes: bytes
    def __init__(self, image_bytes: _Optional[bytes] = ...) -> None: ...

class EncodeImageResponse(_message.Message):
    __slots__ = ("image_features", "version")
    IMAGE_FEATURES_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    image_features: _tensor_pb2.Tensor
    version: str
    def __init__(self, image_features: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., version: _Optional[str] = ...) -> None: ...
