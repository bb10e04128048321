from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Tensor(_message.Message):
    __slots__ = ("type", "shape", "data")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        TYPE_UNSPECIFIED: _ClassVar[Tensor.Type]
        TYPE_FLOAT32: _ClassVar[Tensor.Type]
        TYPE_FLOAT16: _ClassVar[Tensor.Type]
        TYPE_BFLOAT16: _ClassVar[Tensor.Type]
    TYPE_UNSPECIFIED: Tensor.Type
    TYPE_FLOAT32: Tensor.Type
    TYPE_FLOAT16: Tensor.Type
    TYPE_BFLOAT16: Tensor.Type
    TYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    type: Tensor.Type
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, type: _Optional[_Union[Tensor.Type, str]] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...
