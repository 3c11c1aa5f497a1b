"""THE stream table: every stream of the runtime is one row here.

Rates, what is recorded, the cameras' freshness, tests and docs come from this table; nothing else
repeats them. Openpilot's ``services.py`` is the example.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

NS = 1_000_000_000

CONTROL_HZ = 30.0
SERVO_HZ = 240.0
CAMERA_HZ = 30.0
STEPS_PER_TICK = 8
SERVO_NS = 4_166_667


class Owner(StrEnum):
    """The process that publishes a stream."""

    BUS = "bus"
    LEADER = "leader"
    CAMERA = "camera"
    RUNTIME = "runtime"
    POLICY_SERVER = "policy_server"


@dataclass(frozen=True, slots=True)
class Stream:
    """One row.

    ``rate_hz`` 0 means "when it happens". ``fresh_s`` is how old the newest sample may be before the
    stream counts as stale (0: never stale). ``recorded_as`` is the name in an episode (``None``: not
    recorded), ``dtype``/``shape`` what is stored there (a 0 in ``shape``: any length). ``jitter_ms`` is
    the budget for the p99.9 of |interval − period| (0: no budget).
    """

    name: str
    unit: str
    rate_hz: float
    owner: Owner
    fresh_s: float
    recorded_as: str | None = None
    dtype: str = "float32"
    shape: tuple[int, ...] = (6,)
    jitter_ms: float = 0.0

    @property
    def period_ns(self) -> int:
        """Nominal period in ns; 0 for a stream without a rate."""
        return round(NS / self.rate_hz) if self.rate_hz else 0

    @property
    def fresh_ns(self) -> int:
        """``fresh_s`` in ns."""
        return round(self.fresh_s * NS)


_BUS = (
    Stream("bus.position", "rad", SERVO_HZ, Owner.BUS, 0.05, "bus.position", jitter_ms=1.0),
    Stream("bus.velocity", "rad/s", SERVO_HZ, Owner.BUS, 0.05, "bus.velocity"),
    Stream("bus.effort", "A or load fraction", SERVO_HZ, Owner.BUS, 0.05, "bus.effort"),
    Stream("bus.goal", "rad", SERVO_HZ, Owner.BUS, 0.05, "bus.goal"),
    Stream("bus.counters", "count", SERVO_HZ, Owner.BUS, 0.05, shape=(6, 6)),
    Stream("leader.position", "rad", SERVO_HZ, Owner.LEADER, 0.1),
)
_TICK = (
    Stream("joints.position", "rad", CONTROL_HZ, Owner.RUNTIME, 0.1, "observation.state", jitter_ms=3.0),
    Stream("joints.velocity", "rad/s", CONTROL_HZ, Owner.RUNTIME, 0.1, "observation.velocity"),
    Stream("joints.effort", "A or load fraction", CONTROL_HZ, Owner.RUNTIME, 0.1, "observation.effort"),
    Stream("joints.temperature", "°C", CONTROL_HZ, Owner.RUNTIME, 0.1, "observation.temperature"),
    Stream("joints.voltage", "V", CONTROL_HZ, Owner.RUNTIME, 0.1, "observation.voltage"),
    Stream(
        "joints.hardware_error", "bits", CONTROL_HZ, Owner.RUNTIME, 0.1, "observation.hardware_error", "uint8"
    ),
    Stream("action.goal", "rad", CONTROL_HZ, Owner.RUNTIME, 0.1, "action"),
    Stream("action.asked", "rad", CONTROL_HZ, Owner.RUNTIME, 0.1, "action.asked"),
    Stream("tick.source", "Source", CONTROL_HZ, Owner.RUNTIME, 0.1, "tick.source", "uint8", ()),
    Stream("tick.lateness", "ms", CONTROL_HZ, Owner.RUNTIME, 0.1, "tick.lateness_ms", "float32", ()),
)
_CAMERA = (
    Stream("camera.front", "rgb", CAMERA_HZ, Owner.CAMERA, 0.25, "front", "uint8", (0, 0, 3), jitter_ms=15.0),
    Stream("camera.wrist", "rgb", CAMERA_HZ, Owner.CAMERA, 0.25, "wrist", "uint8", (0, 0, 3), jitter_ms=15.0),
)
_EVENTS = (
    Stream("policy.chunk", "rad", 0.0, Owner.POLICY_SERVER, 2.0, shape=(0, 6)),
    Stream("policy.exec", "ms", 0.0, Owner.POLICY_SERVER, 2.0, shape=()),
    Stream("monitor.flag", "Flag", 0.0, Owner.RUNTIME, 0.0, "flags", "object", ()),
    Stream("supervisor.state", "State", 0.0, Owner.RUNTIME, 0.0, None, "object", ()),
)

STREAMS = MappingProxyType({stream.name: stream for stream in (*_BUS, *_TICK, *_CAMERA, *_EVENTS)})


@dataclass(frozen=True, slots=True)
class RecordedStream:
    """A low-dimensional stream as an episode keeps it, by its name there."""

    name: str
    unit: str
    dtype: str
    shape: tuple[int, ...]


def recorded_streams() -> tuple[RecordedStream, ...]:
    """The rows that are recorded as numbers; cameras and flags have their own places in an episode."""
    return tuple(
        RecordedStream(stream.recorded_as, stream.unit, stream.dtype, stream.shape)
        for stream in STREAMS.values()
        if stream.recorded_as and stream.owner is not Owner.CAMERA and stream.dtype != "object"
    )


def markdown() -> str:
    """The table as the documentation shows it."""
    rows = [
        "| stream | unit | rate | owner | fresh | recorded as | jitter |",
        "|---|---|---|---|---|---|---|",
    ]
    for s in STREAMS.values():
        rate = f"{s.rate_hz:g} Hz" if s.rate_hz else "event"
        fresh = f"{s.fresh_s * 1000:g} ms" if s.fresh_s else "—"
        jitter = f"{s.jitter_ms:g} ms" if s.jitter_ms else "—"
        recorded = f"`{s.recorded_as}`" if s.recorded_as else "—"
        rows.append(f"| `{s.name}` | {s.unit} | {rate} | {s.owner.value} | {fresh} | {recorded} | {jitter} |")
    return "\n".join(rows) + "\n"
