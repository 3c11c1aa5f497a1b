from protos.ratchet.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class InferRequest(_message.Message):
    __slots__ = ("request_id", "session", "tick", "observation_ns", "state", "images", "deadline_ms", "lane", "frames")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TICK_FIELD_NUMBER: _ClassVar[int]
    OBSERVATION_NS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    session: str
    tick: int
    observation_ns: int
    state: _common_pb2.Tensor
    images: _containers.RepeatedCompositeFieldContainer[_common_pb2.Image]
    deadline_ms: float
    lane: int
    frames: _containers.RepeatedCompositeFieldContainer[SharedFrame]
    def __init__(self, request_id: _Optional[int] = ..., session: _Optional[str] = ..., tick: _Optional[int] = ..., observation_ns: _Optional[int] = ..., state: _Optional[_Union[_common_pb2.Tensor, _Mapping]] = ..., images: _Optional[_Iterable[_Union[_common_pb2.Image, _Mapping]]] = ..., deadline_ms: _Optional[float] = ..., lane: _Optional[int] = ..., frames: _Optional[_Iterable[_Union[SharedFrame, _Mapping]]] = ...) -> None: ...

class OpenFramesRequest(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: str
    def __init__(self, session: _Optional[str] = ...) -> None: ...

class FrameLane(_message.Message):
    __slots__ = ("lane", "pid", "fd", "size", "slots", "slot_bytes", "token")
    LANE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    FD_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    SLOT_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    lane: int
    pid: int
    fd: int
    size: int
    slots: int
    slot_bytes: int
    token: bytes
    def __init__(self, lane: _Optional[int] = ..., pid: _Optional[int] = ..., fd: _Optional[int] = ..., size: _Optional[int] = ..., slots: _Optional[int] = ..., slot_bytes: _Optional[int] = ..., token: _Optional[bytes] = ...) -> None: ...

class SharedFrame(_message.Message):
    __slots__ = ("camera", "slot", "word", "height", "width", "seq", "t_ns")
    CAMERA_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    WORD_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    T_NS_FIELD_NUMBER: _ClassVar[int]
    camera: str
    slot: int
    word: int
    height: int
    width: int
    seq: int
    t_ns: int
    def __init__(self, camera: _Optional[str] = ..., slot: _Optional[int] = ..., word: _Optional[int] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., seq: _Optional[int] = ..., t_ns: _Optional[int] = ...) -> None: ...

class InferResponse(_message.Message):
    __slots__ = ("request_id", "tick", "observation_ns", "actions", "features", "version", "epoch", "exec_ms", "queue_ms", "batch", "remaining_ms", "status", "reason")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TICK_FIELD_NUMBER: _ClassVar[int]
    OBSERVATION_NS_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    EXEC_MS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    REMAINING_MS_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    tick: int
    observation_ns: int
    actions: _common_pb2.Tensor
    features: _common_pb2.Tensor
    version: str
    epoch: int
    exec_ms: float
    queue_ms: float
    batch: int
    remaining_ms: float
    status: int
    reason: str
    def __init__(self, request_id: _Optional[int] = ..., tick: _Optional[int] = ..., observation_ns: _Optional[int] = ..., actions: _Optional[_Union[_common_pb2.Tensor, _Mapping]] = ..., features: _Optional[_Union[_common_pb2.Tensor, _Mapping]] = ..., version: _Optional[str] = ..., epoch: _Optional[int] = ..., exec_ms: _Optional[float] = ..., queue_ms: _Optional[float] = ..., batch: _Optional[int] = ..., remaining_ms: _Optional[float] = ..., status: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class LoadRequest(_message.Message):
    __slots__ = ("path", "backend", "activate", "by_person", "without_probation")
    PATH_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    ACTIVATE_FIELD_NUMBER: _ClassVar[int]
    BY_PERSON_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_PROBATION_FIELD_NUMBER: _ClassVar[int]
    path: str
    backend: str
    activate: bool
    by_person: bool
    without_probation: bool
    def __init__(self, path: _Optional[str] = ..., backend: _Optional[str] = ..., activate: _Optional[bool] = ..., by_person: _Optional[bool] = ..., without_probation: _Optional[bool] = ...) -> None: ...

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
    __slots__ = ("version", "by_person", "without_probation")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BY_PERSON_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_PROBATION_FIELD_NUMBER: _ClassVar[int]
    version: str
    by_person: bool
    without_probation: bool
    def __init__(self, version: _Optional[str] = ..., by_person: _Optional[bool] = ..., without_probation: _Optional[bool] = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ("why",)
    WHY_FIELD_NUMBER: _ClassVar[int]
    why: str
    def __init__(self, why: _Optional[str] = ...) -> None: ...

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
    __slots__ = ("version", "backend", "active", "chunk", "cameras", "manifest_json", "previous", "pid", "path")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    CAMERAS_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_JSON_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    version: str
    backend: str
    active: bool
    chunk: int
    cameras: _containers.RepeatedScalarFieldContainer[str]
    manifest_json: str
    previous: bool
    pid: int
    path: str
    def __init__(self, version: _Optional[str] = ..., backend: _Optional[str] = ..., active: _Optional[bool] = ..., chunk: _Optional[int] = ..., cameras: _Optional[_Iterable[str]] = ..., manifest_json: _Optional[str] = ..., previous: _Optional[bool] = ..., pid: _Optional[int] = ..., path: _Optional[str] = ...) -> None: ...

class ShadowRequest(_message.Message):
    __slots__ = ("bundle", "backend", "seconds", "stop")
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    bundle: str
    backend: str
    seconds: float
    stop: bool
    def __init__(self, bundle: _Optional[str] = ..., backend: _Optional[str] = ..., seconds: _Optional[float] = ..., stop: _Optional[bool] = ...) -> None: ...

class ShadowReport(_message.Message):
    __slots__ = ("version", "serving", "running", "compared", "skipped", "failed", "mean_rad", "max_rad", "mean_sd", "max_sd", "exec_ms_p50", "exec_ms_p99", "seconds", "reason", "action_names", "joint_mean_rad")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    COMPARED_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    MEAN_RAD_FIELD_NUMBER: _ClassVar[int]
    MAX_RAD_FIELD_NUMBER: _ClassVar[int]
    MEAN_SD_FIELD_NUMBER: _ClassVar[int]
    MAX_SD_FIELD_NUMBER: _ClassVar[int]
    EXEC_MS_P50_FIELD_NUMBER: _ClassVar[int]
    EXEC_MS_P99_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ACTION_NAMES_FIELD_NUMBER: _ClassVar[int]
    JOINT_MEAN_RAD_FIELD_NUMBER: _ClassVar[int]
    version: str
    serving: str
    running: bool
    compared: int
    skipped: int
    failed: int
    mean_rad: float
    max_rad: float
    mean_sd: float
    max_sd: float
    exec_ms_p50: float
    exec_ms_p99: float
    seconds: float
    reason: str
    action_names: _containers.RepeatedScalarFieldContainer[str]
    joint_mean_rad: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, version: _Optional[str] = ..., serving: _Optional[str] = ..., running: _Optional[bool] = ..., compared: _Optional[int] = ..., skipped: _Optional[int] = ..., failed: _Optional[int] = ..., mean_rad: _Optional[float] = ..., max_rad: _Optional[float] = ..., mean_sd: _Optional[float] = ..., max_sd: _Optional[float] = ..., exec_ms_p50: _Optional[float] = ..., exec_ms_p99: _Optional[float] = ..., seconds: _Optional[float] = ..., reason: _Optional[str] = ..., action_names: _Optional[_Iterable[str]] = ..., joint_mean_rad: _Optional[_Iterable[float]] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("session", "episode", "version", "epoch", "failed", "flags", "mixed")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPISODE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    MIXED_FIELD_NUMBER: _ClassVar[int]
    session: str
    episode: str
    version: str
    epoch: int
    failed: bool
    flags: _containers.RepeatedScalarFieldContainer[str]
    mixed: bool
    def __init__(self, session: _Optional[str] = ..., episode: _Optional[str] = ..., version: _Optional[str] = ..., epoch: _Optional[int] = ..., failed: _Optional[bool] = ..., flags: _Optional[_Iterable[str]] = ..., mixed: _Optional[bool] = ...) -> None: ...

class ReportResponse(_message.Message):
    __slots__ = ("counted", "failure", "verdict", "serving")
    COUNTED_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    counted: bool
    failure: bool
    verdict: str
    serving: str
    def __init__(self, counted: _Optional[bool] = ..., failure: _Optional[bool] = ..., verdict: _Optional[str] = ..., serving: _Optional[str] = ...) -> None: ...

class Probation(_message.Message):
    __slots__ = ("version", "predecessor", "episodes", "failures", "of_episodes", "remaining_s", "bound", "e_value", "e_limit")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PREDECESSOR_FIELD_NUMBER: _ClassVar[int]
    EPISODES_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    OF_EPISODES_FIELD_NUMBER: _ClassVar[int]
    REMAINING_S_FIELD_NUMBER: _ClassVar[int]
    BOUND_FIELD_NUMBER: _ClassVar[int]
    E_VALUE_FIELD_NUMBER: _ClassVar[int]
    E_LIMIT_FIELD_NUMBER: _ClassVar[int]
    version: str
    predecessor: str
    episodes: int
    failures: int
    of_episodes: int
    remaining_s: float
    bound: float
    e_value: float
    e_limit: float
    def __init__(self, version: _Optional[str] = ..., predecessor: _Optional[str] = ..., episodes: _Optional[int] = ..., failures: _Optional[int] = ..., of_episodes: _Optional[int] = ..., remaining_s: _Optional[float] = ..., bound: _Optional[float] = ..., e_value: _Optional[float] = ..., e_limit: _Optional[float] = ...) -> None: ...

class Barred(_message.Message):
    __slots__ = ("version", "reason", "wall", "by_server")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    WALL_FIELD_NUMBER: _ClassVar[int]
    BY_SERVER_FIELD_NUMBER: _ClassVar[int]
    version: str
    reason: str
    wall: str
    by_server: bool
    def __init__(self, version: _Optional[str] = ..., reason: _Optional[str] = ..., wall: _Optional[str] = ..., by_server: _Optional[bool] = ...) -> None: ...

class SwapEvent(_message.Message):
    __slots__ = ("wall", "kind", "version", "previous", "reason")
    WALL_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    wall: str
    kind: str
    version: str
    previous: str
    reason: str
    def __init__(self, wall: _Optional[str] = ..., kind: _Optional[str] = ..., version: _Optional[str] = ..., previous: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("slots", "epoch", "served", "failed", "exec_ms_p50", "exec_ms_p99", "dropped", "refused", "clients", "waiting", "lanes", "lane_bytes", "batches", "probation", "barred", "events", "shadow", "previous")
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    EXEC_MS_P50_FIELD_NUMBER: _ClassVar[int]
    EXEC_MS_P99_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    LANES_FIELD_NUMBER: _ClassVar[int]
    LANE_BYTES_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    PROBATION_FIELD_NUMBER: _ClassVar[int]
    BARRED_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    slots: _containers.RepeatedCompositeFieldContainer[Slot]
    epoch: int
    served: int
    failed: int
    exec_ms_p50: float
    exec_ms_p99: float
    dropped: int
    refused: int
    clients: _containers.RepeatedCompositeFieldContainer[ClientStatus]
    waiting: int
    lanes: int
    lane_bytes: int
    batches: _containers.RepeatedCompositeFieldContainer[BatchStatus]
    probation: Probation
    barred: _containers.RepeatedCompositeFieldContainer[Barred]
    events: _containers.RepeatedCompositeFieldContainer[SwapEvent]
    shadow: ShadowReport
    previous: str
    def __init__(self, slots: _Optional[_Iterable[_Union[Slot, _Mapping]]] = ..., epoch: _Optional[int] = ..., served: _Optional[int] = ..., failed: _Optional[int] = ..., exec_ms_p50: _Optional[float] = ..., exec_ms_p99: _Optional[float] = ..., dropped: _Optional[int] = ..., refused: _Optional[int] = ..., clients: _Optional[_Iterable[_Union[ClientStatus, _Mapping]]] = ..., waiting: _Optional[int] = ..., lanes: _Optional[int] = ..., lane_bytes: _Optional[int] = ..., batches: _Optional[_Iterable[_Union[BatchStatus, _Mapping]]] = ..., probation: _Optional[_Union[Probation, _Mapping]] = ..., barred: _Optional[_Iterable[_Union[Barred, _Mapping]]] = ..., events: _Optional[_Iterable[_Union[SwapEvent, _Mapping]]] = ..., shadow: _Optional[_Union[ShadowReport, _Mapping]] = ..., previous: _Optional[str] = ...) -> None: ...

class ClientStatus(_message.Message):
    __slots__ = ("session", "last_seen_ms", "served", "dropped", "refused", "failed", "in_flight", "shared", "sent")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_MS_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    SENT_FIELD_NUMBER: _ClassVar[int]
    session: str
    last_seen_ms: float
    served: int
    dropped: int
    refused: int
    failed: int
    in_flight: int
    shared: int
    sent: int
    def __init__(self, session: _Optional[str] = ..., last_seen_ms: _Optional[float] = ..., served: _Optional[int] = ..., dropped: _Optional[int] = ..., refused: _Optional[int] = ..., failed: _Optional[int] = ..., in_flight: _Optional[int] = ..., shared: _Optional[int] = ..., sent: _Optional[int] = ...) -> None: ...

class BatchStatus(_message.Message):
    __slots__ = ("size", "exec_ms", "runs")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    EXEC_MS_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    size: int
    exec_ms: float
    runs: int
    def __init__(self, size: _Optional[int] = ..., exec_ms: _Optional[float] = ..., runs: _Optional[int] = ...) -> None: ...
