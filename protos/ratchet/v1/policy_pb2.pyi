from protos.ratchet.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class InferRequest(_message.Message):
    __slots__ = ("request_id", "session", "tick", "observation_ns", "state", "images")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TICK_FIELD_NUMBER: _ClassVar[int]
    OBSERVATION_NS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    session: str
    tick: int
    observation_ns: int
    state: _common_pb2.Tensor
    images: _containers.RepeatedCompositeFieldContainer[_common_pb2.Image]
    def __init__(self, request_id: _Optional[int] = ..., session: _Optional[str] = ..., tick: _Optional[int] = ..., observation_ns: _Optional[int] = ..., state: _Optional[_Union[_common_pb2.Tensor, _Mapping]] = ..., images: _Optional[_Iterable[_Union[_common_pb2.Image, _Mapping]]] = ...) -> None: ...

class InferResponse(_message.Message):
    __slots__ = ("request_id", "tick", "observation_ns", "actions", "features", "version", "epoch", "exec_ms", "queue_ms")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TICK_FIELD_NUMBER: _ClassVar[int]
    OBSERVATION_NS_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    EXEC_MS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    tick: int
    observation_ns: int
    actions: _common_pb2.Tensor
    features: _common_pb2.Tensor
    version: str
    epoch: int
    exec_ms: float
    queue_ms: float
    def __init__(self, request_id: _Optional[int] = ..., tick: _Optional[int] = ..., observation_ns: _Optional[int] = ..., actions: _Optional[_Union[_common_pb2.Tensor, _Mapping]] = ..., features: _Optional[_Union[_common_pb2.Tensor, _Mapping]] = ..., version: _Optional[str] = ..., epoch: _Optional[int] = ..., exec_ms: _Optional[float] = ..., queue_ms: _Optional[float] = ...) -> None: ...

class LoadRequest(_message.Message):
    __slots__ = ("path", "backend", "activate")
    PATH_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    ACTIVATE_FIELD_NUMBER: _ClassVar[int]
    path: str
    backend: str
    activate: bool
    def __init__(self, path: _Optional[str] = ..., backend: _Optional[str] = ..., activate: _Optional[bool] = ...) -> None: ...

class LoadResponse(_message.Message):
    __slots__ = ("version", "verify_ms", "load_ms", "warm_ms", "active", "epoch")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VERIFY_MS_FIELD_NUMBER: _ClassVar[int]
    LOAD_MS_FIELD_NUMBER: _ClassVar[int]
    WARM_MS_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    version: str
    verify_ms: float
    load_ms: float
    warm_ms: float
    active: bool
    epoch: int
    def __init__(self, version: _Optional[str] = ..., verify_ms: _Optional[float] = ..., load_ms: _Optional[float] = ..., warm_ms: _Optional[float] = ..., active: _Optional[bool] = ..., epoch: _Optional[int] = ...) -> None: ...

class SwapRequest(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: str
    def __init__(self, version: _Optional[str] = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SwapResponse(_message.Message):
    __slots__ = ("version", "previous", "epoch", "swap_ms")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SWAP_MS_FIELD_NUMBER: _ClassVar[int]
    version: str
    previous: str
    epoch: int
    swap_ms: float
    def __init__(self, version: _Optional[str] = ..., previous: _Optional[str] = ..., epoch: _Optional[int] = ..., swap_ms: _Optional[float] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ("manifests",)
    MANIFESTS_FIELD_NUMBER: _ClassVar[int]
    manifests: bool
    def __init__(self, manifests: _Optional[bool] = ...) -> None: ...

class Slot(_message.Message):
    __slots__ = ("version", "backend", "active", "chunk", "cameras", "manifest_json")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    CAMERAS_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_JSON_FIELD_NUMBER: _ClassVar[int]
    version: str
    backend: str
    active: bool
    chunk: int
    cameras: _containers.RepeatedScalarFieldContainer[str]
    manifest_json: str
    def __init__(self, version: _Optional[str] = ..., backend: _Optional[str] = ..., active: _Optional[bool] = ..., chunk: _Optional[int] = ..., cameras: _Optional[_Iterable[str]] = ..., manifest_json: _Optional[str] = ...) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("slots", "epoch", "served", "failed", "exec_ms_p50", "exec_ms_p99", "dropped", "refused")
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    EXEC_MS_P50_FIELD_NUMBER: _ClassVar[int]
    EXEC_MS_P99_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    slots: _containers.RepeatedCompositeFieldContainer[Slot]
    epoch: int
    served: int
    failed: int
    exec_ms_p50: float
    exec_ms_p99: float
    dropped: int
    refused: int
    def __init__(self, slots: _Optional[_Iterable[_Union[Slot, _Mapping]]] = ..., epoch: _Optional[int] = ..., served: _Optional[int] = ..., failed: _Optional[int] = ..., exec_ms_p50: _Optional[float] = ..., exec_ms_p99: _Optional[float] = ..., dropped: _Optional[int] = ..., refused: _Optional[int] = ...) -> None: ...
