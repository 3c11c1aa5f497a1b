from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetStateRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RobotState(_message.Message):
    __slots__ = ("robot", "mode", "reason", "tick", "position", "velocity", "effort", "temperature", "voltage", "hardware_error", "goal", "episode", "policy", "lease_holder", "loop", "recent_flags", "joints", "replies", "recording")
    ROBOT_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TICK_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    VELOCITY_FIELD_NUMBER: _ClassVar[int]
    EFFORT_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    VOLTAGE_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_ERROR_FIELD_NUMBER: _ClassVar[int]
    GOAL_FIELD_NUMBER: _ClassVar[int]
    EPISODE_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    LEASE_HOLDER_FIELD_NUMBER: _ClassVar[int]
    LOOP_FIELD_NUMBER: _ClassVar[int]
    RECENT_FLAGS_FIELD_NUMBER: _ClassVar[int]
    JOINTS_FIELD_NUMBER: _ClassVar[int]
    REPLIES_FIELD_NUMBER: _ClassVar[int]
    RECORDING_FIELD_NUMBER: _ClassVar[int]
    robot: str
    mode: str
    reason: str
    tick: int
    position: _containers.RepeatedScalarFieldContainer[float]
    velocity: _containers.RepeatedScalarFieldContainer[float]
    effort: _containers.RepeatedScalarFieldContainer[float]
    temperature: _containers.RepeatedScalarFieldContainer[float]
    voltage: _containers.RepeatedScalarFieldContainer[float]
    hardware_error: _containers.RepeatedScalarFieldContainer[int]
    goal: _containers.RepeatedScalarFieldContainer[float]
    episode: str
    policy: str
    lease_holder: str
    loop: LoopStats
    recent_flags: _containers.RepeatedCompositeFieldContainer[FlagMessage]
    joints: _containers.RepeatedScalarFieldContainer[str]
    replies: _containers.RepeatedCompositeFieldContainer[MotorReplies]
    recording: Recording
    def __init__(self, robot: _Optional[str] = ..., mode: _Optional[str] = ..., reason: _Optional[str] = ..., tick: _Optional[int] = ..., position: _Optional[_Iterable[float]] = ..., velocity: _Optional[_Iterable[float]] = ..., effort: _Optional[_Iterable[float]] = ..., temperature: _Optional[_Iterable[float]] = ..., voltage: _Optional[_Iterable[float]] = ..., hardware_error: _Optional[_Iterable[int]] = ..., goal: _Optional[_Iterable[float]] = ..., episode: _Optional[str] = ..., policy: _Optional[str] = ..., lease_holder: _Optional[str] = ..., loop: _Optional[_Union[LoopStats, _Mapping]] = ..., recent_flags: _Optional[_Iterable[_Union[FlagMessage, _Mapping]]] = ..., joints: _Optional[_Iterable[str]] = ..., replies: _Optional[_Iterable[_Union[MotorReplies, _Mapping]]] = ..., recording: _Optional[_Union[Recording, _Mapping]] = ...) -> None: ...

class Recording(_message.Message):
    __slots__ = ("task", "seconds", "frames", "repeated", "dropped", "bytes_per_s", "disk_free", "held_s")
    TASK_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    REPEATED_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    DISK_FREE_FIELD_NUMBER: _ClassVar[int]
    HELD_S_FIELD_NUMBER: _ClassVar[int]
    task: str
    seconds: float
    frames: int
    repeated: int
    dropped: int
    bytes_per_s: float
    disk_free: int
    held_s: float
    def __init__(self, task: _Optional[str] = ..., seconds: _Optional[float] = ..., frames: _Optional[int] = ..., repeated: _Optional[int] = ..., dropped: _Optional[int] = ..., bytes_per_s: _Optional[float] = ..., disk_free: _Optional[int] = ..., held_s: _Optional[float] = ...) -> None: ...

class MotorReplies(_message.Message):
    __slots__ = ("lost", "crc_errors", "timeouts", "retries", "recovered", "stalls")
    LOST_FIELD_NUMBER: _ClassVar[int]
    CRC_ERRORS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUTS_FIELD_NUMBER: _ClassVar[int]
    RETRIES_FIELD_NUMBER: _ClassVar[int]
    RECOVERED_FIELD_NUMBER: _ClassVar[int]
    STALLS_FIELD_NUMBER: _ClassVar[int]
    lost: int
    crc_errors: int
    timeouts: int
    retries: int
    recovered: int
    stalls: int
    def __init__(self, lost: _Optional[int] = ..., crc_errors: _Optional[int] = ..., timeouts: _Optional[int] = ..., retries: _Optional[int] = ..., recovered: _Optional[int] = ..., stalls: _Optional[int] = ...) -> None: ...

class LoopStats(_message.Message):
    __slots__ = ("ticks", "missed", "period_ms_p50", "period_ms_p99", "period_ms_max", "lateness_ms_p99", "inference_ms_p50", "inference_ms_p99", "bus_cycles", "bus_lost", "leader_hz", "leader_latency_ms_p50", "leader_latency_ms_p99")
    TICKS_FIELD_NUMBER: _ClassVar[int]
    MISSED_FIELD_NUMBER: _ClassVar[int]
    PERIOD_MS_P50_FIELD_NUMBER: _ClassVar[int]
    PERIOD_MS_P99_FIELD_NUMBER: _ClassVar[int]
    PERIOD_MS_MAX_FIELD_NUMBER: _ClassVar[int]
    LATENESS_MS_P99_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_MS_P50_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_MS_P99_FIELD_NUMBER: _ClassVar[int]
    BUS_CYCLES_FIELD_NUMBER: _ClassVar[int]
    BUS_LOST_FIELD_NUMBER: _ClassVar[int]
    LEADER_HZ_FIELD_NUMBER: _ClassVar[int]
    LEADER_LATENCY_MS_P50_FIELD_NUMBER: _ClassVar[int]
    LEADER_LATENCY_MS_P99_FIELD_NUMBER: _ClassVar[int]
    ticks: int
    missed: int
    period_ms_p50: float
    period_ms_p99: float
    period_ms_max: float
    lateness_ms_p99: float
    inference_ms_p50: float
    inference_ms_p99: float
    bus_cycles: int
    bus_lost: int
    leader_hz: float
    leader_latency_ms_p50: float
    leader_latency_ms_p99: float
    def __init__(self, ticks: _Optional[int] = ..., missed: _Optional[int] = ..., period_ms_p50: _Optional[float] = ..., period_ms_p99: _Optional[float] = ..., period_ms_max: _Optional[float] = ..., lateness_ms_p99: _Optional[float] = ..., inference_ms_p50: _Optional[float] = ..., inference_ms_p99: _Optional[float] = ..., bus_cycles: _Optional[int] = ..., bus_lost: _Optional[int] = ..., leader_hz: _Optional[float] = ..., leader_latency_ms_p50: _Optional[float] = ..., leader_latency_ms_p99: _Optional[float] = ...) -> None: ...

class FlagMessage(_message.Message):
    __slots__ = ("kind", "start_ns", "end_ns", "score", "evidence_json")
    KIND_FIELD_NUMBER: _ClassVar[int]
    START_NS_FIELD_NUMBER: _ClassVar[int]
    END_NS_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_JSON_FIELD_NUMBER: _ClassVar[int]
    kind: str
    start_ns: int
    end_ns: int
    score: float
    evidence_json: str
    def __init__(self, kind: _Optional[str] = ..., start_ns: _Optional[int] = ..., end_ns: _Optional[int] = ..., score: _Optional[float] = ..., evidence_json: _Optional[str] = ...) -> None: ...

class AcquireControlRequest(_message.Message):
    __slots__ = ("holder",)
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    holder: str
    def __init__(self, holder: _Optional[str] = ...) -> None: ...

class Lease(_message.Message):
    __slots__ = ("id", "holder", "window_s")
    ID_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    WINDOW_S_FIELD_NUMBER: _ClassVar[int]
    id: str
    holder: str
    window_s: float
    def __init__(self, id: _Optional[str] = ..., holder: _Optional[str] = ..., window_s: _Optional[float] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: str
    def __init__(self, lease: _Optional[str] = ...) -> None: ...

class ReleaseControlRequest(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: str
    def __init__(self, lease: _Optional[str] = ...) -> None: ...

class LeaseRequest(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: str
    def __init__(self, lease: _Optional[str] = ...) -> None: ...

class StopRequest(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class EStopRequest(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class SetModeRequest(_message.Message):
    __slots__ = ("lease", "mode")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    lease: str
    mode: str
    def __init__(self, lease: _Optional[str] = ..., mode: _Optional[str] = ...) -> None: ...

class SetPolicyRequest(_message.Message):
    __slots__ = ("lease", "bundle", "backend")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    lease: str
    bundle: str
    backend: str
    def __init__(self, lease: _Optional[str] = ..., bundle: _Optional[str] = ..., backend: _Optional[str] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("ok", "mode", "detail")
    OK_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    ok: bool
    mode: str
    detail: str
    def __init__(self, ok: _Optional[bool] = ..., mode: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class StartEpisodeRequest(_message.Message):
    __slots__ = ("lease", "task")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    lease: str
    task: str
    def __init__(self, lease: _Optional[str] = ..., task: _Optional[str] = ...) -> None: ...

class EndEpisodeRequest(_message.Message):
    __slots__ = ("lease", "outcome", "reason", "ended")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    lease: str
    outcome: str
    reason: str
    ended: str
    def __init__(self, lease: _Optional[str] = ..., outcome: _Optional[str] = ..., reason: _Optional[str] = ..., ended: _Optional[str] = ...) -> None: ...

class KeepLastRequest(_message.Message):
    __slots__ = ("lease", "task", "outcome")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    lease: str
    task: str
    outcome: str
    def __init__(self, lease: _Optional[str] = ..., task: _Optional[str] = ..., outcome: _Optional[str] = ...) -> None: ...

class EpisodeReply(_message.Message):
    __slots__ = ("id", "frames", "end_ms", "flags")
    ID_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    END_MS_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    id: str
    frames: int
    end_ms: float
    flags: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., frames: _Optional[int] = ..., end_ms: _Optional[float] = ..., flags: _Optional[_Iterable[str]] = ...) -> None: ...

class StreamTelemetryRequest(_message.Message):
    __slots__ = ("rate_hz",)
    RATE_HZ_FIELD_NUMBER: _ClassVar[int]
    rate_hz: float
    def __init__(self, rate_hz: _Optional[float] = ...) -> None: ...

class Telemetry(_message.Message):
    __slots__ = ("t_ns", "state")
    T_NS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    t_ns: int
    state: RobotState
    def __init__(self, t_ns: _Optional[int] = ..., state: _Optional[_Union[RobotState, _Mapping]] = ...) -> None: ...

class TeleopGoal(_message.Message):
    __slots__ = ("lease", "position", "age_ns", "seq")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    AGE_NS_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    lease: str
    position: _containers.RepeatedScalarFieldContainer[float]
    age_ns: int
    seq: int
    def __init__(self, lease: _Optional[str] = ..., position: _Optional[_Iterable[float]] = ..., age_ns: _Optional[int] = ..., seq: _Optional[int] = ...) -> None: ...

class TeleopSummary(_message.Message):
    __slots__ = ("received", "refused")
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    received: int
    refused: int
    def __init__(self, received: _Optional[int] = ..., refused: _Optional[int] = ...) -> None: ...
