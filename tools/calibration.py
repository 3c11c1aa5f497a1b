"""Calibrating an arm by hand: its middle pose, then every joint through its range, torque off.

The result is LeRobot's file layout. With c = ±r + homing_offset (minus for drive_mode 1) the
middle pose becomes c = 2048, which is 0 rad; the range is what the sweep saw. Joints that can
turn all the way round (shoulder_pan, wrist_roll) keep the whole turn, as in LeRobot.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from hal.calibration import RAD_PER_TICK, ZERO_TICK, Calibration, JointCalibration
from hal.dynamixel.arm import ArmSpec
from hal.dynamixel.bus import ArmBus
from hal.dynamixel.tables import TICKS_PER_TURN
from hal.types import Vector
from tools.errors import UsageError

FULL_TURN = ("shoulder_pan", "wrist_roll")
LEADER_INVERTED = ("elbow_flex",)  # LeRobot's drive_mode 1 of the Koch leader
MIN_SWEEP_TICKS = 256  # 22 degrees: less is a joint that was forgotten

_LAST_TICK = TICKS_PER_TURN - 1


class Progress(BaseModel):
    """What has been measured: ticks at the middle pose; how far each joint went below and above it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    arm: str
    middle: tuple[int, ...]
    below: tuple[int, ...]
    above: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class JointRange:
    """A joint during the sweep, ticks from the middle pose."""

    joint: str
    low: int
    now: int
    high: int
    enough: bool


class HandCalibration:
    """The procedure: ``begin`` at the middle pose, ``look`` while the joints are moved, then ``result``.

    ``bus`` is open with an identity calibration; joints in ``invert`` count the other way than usual.
    Interrupted, it goes on from the file ``progress_file``.
    """

    def __init__(self, bus: ArmBus, leader: bool, progress_file: Path, invert: Collection[str] = ()) -> None:
        self._bus = bus
        self._spec: ArmSpec = bus.spec
        usual = LEADER_INVERTED if leader else ()
        self._inverted = np.array([(m.joint in usual) != (m.joint in invert) for m in self._spec.motors])
        self._file = progress_file
        n = len(self._spec.motors)
        self._middle = np.zeros(n, dtype=np.int64)
        self._last = np.zeros(n, dtype=np.int64)
        self._turned = np.zeros(n, dtype=np.int64)
        self._low = np.zeros(n, dtype=np.int64)
        self._high = np.zeros(n, dtype=np.int64)

    def resume(self) -> bool:
        """Go on from an interrupted run; False when there is none. Raises UsageError for another arm's."""
        try:
            saved = Progress.model_validate_json(self._file.read_text())
        except FileNotFoundError:
            return False
        except ValidationError as error:
            raise UsageError(f"{self._file} is damaged ({error.errors()[0]['msg']}); delete it") from error
        if saved.arm != self._spec.name or len(saved.middle) != len(self._middle):
            raise UsageError(f"{self._file} belongs to a {saved.arm}; delete it, or name another file")
        self._middle[:] = saved.middle
        self._low[:], self._high[:] = saved.below, saved.above
        self._last = self._middle.copy()
        self._turned[:] = 0
        self._follow(self._ticks())
        return True

    def begin(self) -> None:
        """The arm is in its middle pose now. Raises MotorError, PortError."""
        self._middle = self._ticks()
        self._last = self._middle.copy()
        for row in (self._turned, self._low, self._high):
            row[:] = 0
        self._save()

    def look(self) -> list[JointRange]:
        """Read the joints once; the ranges so far. No joint may turn half round between two calls."""
        self._follow(self._ticks())
        np.minimum(self._low, self._turned, out=self._low)
        np.maximum(self._high, self._turned, out=self._high)
        return [
            JointRange(
                motor.joint,
                int(self._low[i]),
                int(self._turned[i]),
                int(self._high[i]),
                motor.joint in FULL_TURN or bool(self._high[i] - self._low[i] >= MIN_SWEEP_TICKS),
            )
            for i, motor in enumerate(self._spec.motors)
        ]

    def save(self) -> None:
        """Keep what was measured so far, for ``resume``."""
        self._save()

    def forgotten(self) -> str:
        """The joints that were not moved far enough, and how far they were, for a person; empty: none."""
        rows = [row for row in self.look() if not row.enough]
        return ", ".join(f"{row.joint} ({_degrees(row.high - row.low):.0f}°)" for row in rows)

    def pose(self) -> Vector:
        """Where the arm is now, rad (6,), in the calibration that this will give."""
        self._follow(self._ticks())
        return np.asarray(np.where(self._inverted, -1, 1) * self._turned * RAD_PER_TICK, dtype=np.float64)

    def result(self) -> Calibration:
        """The calibration. Raises UsageError naming the joints that were not moved far enough."""
        forgotten = self.forgotten()
        if forgotten:
            self._save()
            raise UsageError(
                f"moved less than {_degrees(MIN_SWEEP_TICKS):.0f}°: {forgotten}; "
                "run this again, it goes on from here, and move each from end to end"
            )
        return Calibration({m.joint: self._row(i) for i, m in enumerate(self._spec.motors)})

    def done(self) -> None:
        """The calibration is written: forget the progress."""
        self._file.unlink(missing_ok=True)

    def _row(self, i: int) -> JointCalibration:
        motor, inverted = self._spec.motors[i], bool(self._inverted[i])
        sign = -1 if inverted else 1
        if motor.joint in FULL_TURN:
            low, high = 0, _LAST_TICK
        else:
            low, high = sorted(ZERO_TICK + sign * int(end) for end in (self._low[i], self._high[i]))
        return JointCalibration(
            id=motor.id,
            drive_mode=int(inverted),
            homing_offset=ZERO_TICK - sign * int(self._middle[i]),
            range_min=max(0, low),
            range_max=min(_LAST_TICK, high),
        )

    def _ticks(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Motor ticks within one turn, int64 (n,)."""
        ticks = self._bus.calibration.to_ticks(self._bus.read().position)
        return np.mod(ticks, TICKS_PER_TURN)

    def _follow(self, ticks: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
        """Count on across the point where an encoder jumps from 4095 to 0: the shorter way was taken."""
        half = TICKS_PER_TURN // 2
        self._turned += np.mod(ticks - self._last + half, TICKS_PER_TURN) - half
        self._last = ticks

    def _save(self) -> None:
        progress = Progress(
            arm=self._spec.name,
            middle=tuple(self._middle.tolist()),
            below=tuple(self._low.tolist()),
            above=tuple(self._high.tolist()),
        )
        self._file.parent.mkdir(parents=True, exist_ok=True)
        partial = self._file.with_suffix(".writing")
        partial.write_text(json.dumps(progress.model_dump()))
        partial.replace(self._file)


def _degrees(ticks: int) -> float:
    return ticks * 360.0 / TICKS_PER_TURN
