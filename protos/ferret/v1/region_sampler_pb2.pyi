from ferret.v1 import regions_pb2 as _regions_pb2
from ferret.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EncodeRegionsRequest(_message.Message):
    __slots__ = ("image_features", "image_width", "image_height", "regions")
    IMAGE_FEATURES_FIELD_NUMBER: _ClassVar[int]
    IMAGE_WIDTH_FIELD_NUMBER: _ClassVar[int]
    IMAGE_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    image_features: _tensor_pb2.Tensor
    image_width: int
    image_height: int
    regions: _containers.RepeatedCompositeFieldContainer[_regions_pb2.Region]
    def __init__(self, image_features: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., image_width: _Optional[int] = ..., image_height: _Optional[int] = ..., regions: _Optional[_Iterable[_Union[_regions_pb2.Region, _Mapping]]] = ...) -> None: ...

class EncodeRegionsResponse(_message.Message):
    __slots__ = ("region_features", "version")
    REGION_FEATURES_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    region_features: _tensor_pb2.Tensor
    version: str
    def __init__(self, region_features: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., version: _Optional[str] = ...) -> None: ...
