"""What the bus process and its handle share: the records of their rings and the two live words.

Four rings (state out, command in, request in, reply out) and a page of words lie in the run
directory as ``<arm>.*``. The e-stop is a word, not a message: nothing can stand in front of it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hal.dynamixel.bus import COUNTERS
from hal.types import NUM_JOINTS, JointState, Vector
from runtime.errors import RingError
from runtime.guard import Bits
from runtime.ring import create_ring, map_file
from runtime.servo import HoldCause, Phase

STATE_CAPACITY = 1024  # 4 s at 240 Hz: a reader may stall that long without losing a sample
COMMAND_CAPACITY = 16
MESSAGE_BYTES = 200

_JOINT = (NUM_JOINTS,)
STATE = np.dtype(
    [
        ("seq", "<i8"),
        ("t_ns", "<i8"),
        *((name, "<f8", _JOINT) for name in ("position", "velocity", "effort", "temperature", "voltage")),
        ("hardware_error", "u1", _JOINT),
        ("moving", "?", _JOINT),
        ("age_ns", "<i8", _JOINT),
        ("goal", "<f8", _JOINT),
        ("clamped", "u1", _JOINT),
        ("phase", "u1"),
        ("cause", "u1"),
        ("torque", "?"),
        ("estopped", "?"),
        ("fault", "u1"),
        ("contact_joint", "i1"),
        ("residual", "<f8"),
        ("command_seq", "<i8"),
        ("written_ns", "<i8"),  # when the last goals had been written to the port
        ("late_ns", "<i8"),
        ("exec_ns", "<i8"),
        ("cycles", "<i8"),
        ("overruns", "<i8"),
        ("counters", "<i8", (len(COUNTERS), NUM_JOINTS)),
        ("dropped_commands", "<i8"),
        ("leader_latency_ns", "<i8"),
        ("leader_updates", "<i8"),
        ("message", f"S{MESSAGE_BYTES}"),
    ]
)
COMMAND = np.dtype(
    [
        ("seq", "<i8"),
        ("position", "<f8", _JOINT),
        ("target_ns", "<i8"),
        ("expires_ns", "<i8"),
        ("source", "u1"),
        ("leader", "?"),
    ]
)
REQUEST = np.dtype([("op", "u1"), ("argument", "<i8")])
REPLY = np.dtype([("request", "<i8"), ("granted", "?"), ("message", f"S{MESSAGE_BYTES}")])


class Op(IntEnum):
    """What the handle may ask of the bus process."""

    ENABLE = 1
    DISABLE = 2
    RELEASE = 3
    HOLD = 4
    ACKNOWLEDGE = 5
    CLEAR_ESTOP = 6
    CLEAR_FAULT = 7
    STOP = 8


class Fault(IntEnum):
    """Why the bus process does not command the arm. Latched until CLEAR_FAULT."""

    NONE = 0
    PORT = 1
    MOTOR = 2
    HARDWARE = 3
    WATCHDOG = 4


Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BusCounters:
    """What went wrong with each motor's replies since the bus process started, int64 (6,) each; see
    ``hal.dynamixel.bus.MotorStats``."""

    lost: Counts
    crc_errors: Counts
    timeouts: Counts
    retries: Counts
    recovered: Counts
    stalls: Counts

    @property
    def lost_replies(self) -> int:
        """Replies that did not come, or not whole, of all motors; a retry may have brought the sample."""
        return int(self.timeouts.sum() + self.crc_errors.sum())


@dataclass(frozen=True, slots=True)
class BusSample:
    """One cycle of the bus process.

    ``joints`` as measured (its ``t_ns`` stays behind while the bus is in fault); ``goal`` rad (6,) as let
    through; ``clamped`` guard bits (6,). ``contact_joint`` is an index into JOINTS or −1. ``late_ns`` is how
    late the cycle began, ``exec_ns`` how long it took. ``counters`` of the motors, ``overruns`` and
    ``dropped_commands`` (waypoints not accepted) only rise. ``leader_latency_ns`` is the time from
    the leader's measurement to the goal made of it in this cycle, −1 when there is none; ``leader_updates``
    counts those. ``message`` is one line for a person while
    ``fault`` is set.
    """

    index: int
    joints: JointState
    goal: Vector
    clamped: Bits
    phase: Phase
    cause: HoldCause
    torque: bool
    estopped: bool
    fault: Fault
    contact_joint: int
    residual: float
    command_seq: int
    late_ns: int
    exec_ns: int
    cycles: int
    overruns: int
    counters: BusCounters
    dropped_commands: int
    message: str
    leader_latency_ns: int = -1
    leader_updates: int = 0

    @property
    def lost(self) -> int:
        """Replies that did not come, or not whole; a retry may have brought the sample."""
        return self.counters.lost_replies


def to_sample(index: int, record: Any) -> BusSample:
    """A ring record as a BusSample; every array is a copy."""
    joints = JointState(
        seq=int(record["seq"]),
        t_ns=int(record["t_ns"]),
        position=record["position"].copy(),
        velocity=record["velocity"].copy(),
        effort=record["effort"].copy(),
        temperature=record["temperature"].copy(),
        voltage=record["voltage"].copy(),
        hardware_error=record["hardware_error"].copy(),
        moving=record["moving"].copy(),
        age_ns=record["age_ns"].copy(),
    )
    return BusSample(
        index=index,
        joints=joints,
        goal=record["goal"].copy(),
        clamped=record["clamped"].copy(),
        phase=Phase(int(record["phase"])),
        cause=HoldCause(int(record["cause"])),
        torque=bool(record["torque"]),
        estopped=bool(record["estopped"]),
        fault=Fault(int(record["fault"])),
        contact_joint=int(record["contact_joint"]),
        residual=float(record["residual"]),
        command_seq=int(record["command_seq"]),
        late_ns=int(record["late_ns"]),
        exec_ns=int(record["exec_ns"]),
        cycles=int(record["cycles"]),
        overruns=int(record["overruns"]),
        counters=BusCounters(*record["counters"].copy()),
        dropped_commands=int(record["dropped_commands"]),
        message=bytes(record["message"]).decode(errors="replace"),
        leader_latency_ns=int(record["leader_latency_ns"]),
        leader_updates=int(record["leader_updates"]),
    )


def write_joints(record: Any, joints: JointState) -> None:
    """Copy a JointState into a ring record."""
    record["seq"], record["t_ns"] = joints.seq, joints.t_ns
    record["position"], record["velocity"] = joints.position, joints.velocity
    record["effort"], record["temperature"] = joints.effort, joints.temperature
    record["voltage"], record["hardware_error"] = joints.voltage, joints.hardware_error
    record["moving"], record["age_ns"] = joints.moving, joints.age_ns


class BusWords:
    """The live words of one arm: the e-stop counter and the heartbeat. Raises RingError.

    An e-stop is raised by adding one, from any process; it counts until a clear names that very
    number, so one that is raised while another is being cleared is never lost.
    """

    _BYTES = 4096

    def __init__(self, path: Path) -> None:
        self._words = np.frombuffer(map_file(path, writable=True), dtype="<i8", count=8)

    @classmethod
    def create(cls, path: Path) -> BusWords:
        """Make the page, or go on with the one that is there: what was latched in it stays latched.

        A page is never replaced while somebody may hold it: an e-stop raised through it would be lost.
        """
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            if path.exists() and path.stat().st_size == cls._BYTES:
                words = cls(path)
                words.beat(0)
                return words
            partial.write_bytes(bytes(cls._BYTES))
            os.replace(partial, path)
        except OSError as error:
            raise RingError(f"cannot make {path}: {error.strerror}", "check the run directory") from error
        return cls(path)

    @property
    def estops(self) -> int:
        """E-stops ever raised."""
        return int(self._words[0])

    def raise_estop(self) -> None:
        """Stop the arm at its next cycle; costs one store."""
        self._words[0] += 1

    @property
    def cleared(self) -> int:
        """The e-stop that was cleared last."""
        return int(self._words[2])

    def clear(self, estop: int) -> None:
        """Say that the e-stop numbered ``estop`` is over; the bus process's word."""
        self._words[2] = estop

    @property
    def heartbeat_ns(self) -> int:
        """Monotonic time of the bus process's last cycle; 0 before the first."""
        return int(self._words[1])

    def beat(self, now_ns: int) -> None:
        self._words[1] = now_ns


@dataclass(frozen=True, slots=True)
class BusFiles:
    """Paths of one arm's shared files."""

    run_dir: Path
    arm: str

    def _path(self, kind: str) -> Path:
        return self.run_dir / f"{self.arm}.{kind}"

    @property
    def state(self) -> Path:
        return self._path("state")

    @property
    def command(self) -> Path:
        return self._path("command")

    @property
    def request(self) -> Path:
        return self._path("request")

    @property
    def reply(self) -> Path:
        return self._path("reply")

    @property
    def words(self) -> Path:
        return self._path("words")

    @property
    def config(self) -> Path:
        return self._path("config.json")

    @property
    def report(self) -> Path:
        return self._path("report.json")

    def create(self) -> BusWords:
        """Make every ring and the words, empty. Raises RingError."""
        create_ring(self.state, STATE, STATE_CAPACITY)
        create_ring(self.command, COMMAND, COMMAND_CAPACITY)
        create_ring(self.request, REQUEST, COMMAND_CAPACITY)
        create_ring(self.reply, REPLY, COMMAND_CAPACITY)
        return BusWords.create(self.words)
