"""Calibration: where each joint's zero and ends are, in LeRobot's Koch file layout.

The file is JSON ``{joint: {id, drive_mode, homing_offset, range_min, range_max}}``. LeRobot
writes homing offsets into the motors; here they stay in software and the motors' own offset is
0. A motor's tick r becomes the calibrated tick c = ±r + homing_offset (minus when drive_mode is
1), and c = 2048 is 0 rad.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hal.dynamixel.arm import ArmSpec
from hal.dynamixel.tables import TICKS_PER_TURN
from hal.errors import CalibrationError
from hal.types import JOINTS, Vector

Ticks = npt.NDArray[np.int64]

ZERO_TICK = 2048
RAD_PER_TICK = 2 * math.pi / TICKS_PER_TURN
_MAX_FILE_BYTES = 64 * 1024
_REDO = "calibrate the arm again (`ratchet calibrate`) or give the right file"


class JointCalibration(BaseModel):
    """One motor's entry, ticks."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: int = Field(ge=0, le=252)
    drive_mode: int = Field(ge=0, le=1)
    homing_offset: int = Field(ge=-1_044_479, le=1_044_479)
    range_min: int = Field(ge=0, le=TICKS_PER_TURN - 1)
    range_max: int = Field(ge=0, le=TICKS_PER_TURN - 1)

    @model_validator(mode="after")
    def _ordered(self) -> JointCalibration:
        if self.range_min >= self.range_max:
            raise ValueError(f"range_min {self.range_min} is not below range_max {self.range_max}")
        return self


class Calibration:
    """The calibration of every joint of one arm, in joint order. Immutable."""

    def __init__(self, joints: dict[str, JointCalibration]) -> None:
        self.joints = dict(joints)
        rows = self.joints.values()
        self.sign = np.array([-1 if row.drive_mode else 1 for row in rows], dtype=np.int64)
        self._offset = np.array([row.homing_offset for row in rows], dtype=np.int64)
        self._range = np.array([(row.range_min, row.range_max) for row in rows], dtype=np.int64)

    @classmethod
    def identity(cls, spec: ArmSpec) -> Calibration:
        """No offsets, full range: 0 rad is tick 2048 of every motor."""
        last = TICKS_PER_TURN - 1
        return cls(
            {
                m.joint: JointCalibration(id=m.id, drive_mode=0, homing_offset=0, range_min=0, range_max=last)
                for m in spec.motors
            }
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read LeRobot's JSON of a Koch arm. Raises CalibrationError: missing, malformed, other joints."""
        file = Path(path)
        raw = _read(file)
        if not isinstance(raw, dict):
            raise CalibrationError(f"{file} is not a calibration: it must map joint names to values", _REDO)
        missing = [joint for joint in JOINTS if joint not in raw]
        foreign = [str(joint) for joint in raw if joint not in JOINTS]
        if missing or foreign:
            what = f"lacks {', '.join(missing)}" if missing else f"has unknown joints {', '.join(foreign)}"
            raise CalibrationError(f"{file} {what}", _REDO)
        joints: dict[str, JointCalibration] = {}
        for joint in JOINTS:
            try:
                joints[joint] = JointCalibration.model_validate(raw[joint])
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in (joint, *first["loc"]))
                raise CalibrationError(f"{file}: {where}: {first['msg']}", _REDO) from error
        return cls(joints)

    def check(self, spec: ArmSpec) -> None:
        """Raises CalibrationError unless this calibration names the joints and ids of ``spec``."""
        if tuple(self.joints) != spec.joints:
            raise CalibrationError(
                f"the calibration is for the joints {', '.join(self.joints)}, {spec.name} has"
                f" {', '.join(spec.joints)}",
                _REDO,
            )
        for motor in spec.motors:
            if self.joints[motor.joint].id != motor.id:
                raise CalibrationError(
                    f"the calibration has {motor.joint} on motor {self.joints[motor.joint].id},"
                    f" {spec.name} on motor {motor.id}",
                    _REDO,
                )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write LeRobot's JSON, atomically. Raises CalibrationError when the disk refuses."""
        file = Path(path)
        text = json.dumps({joint: row.model_dump() for joint, row in self.joints.items()}, indent=4)
        fresh = file.with_name(f".{file.name}.{os.getpid()}.partial")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with fresh.open("w") as out:
                out.write(text + "\n")
                out.flush()
                os.fsync(out.fileno())
            fresh.replace(file)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            raise CalibrationError(
                f"cannot write {file}: {error.strerror}", "check the path and free space"
            ) from error

    def to_rad(self, ticks: npt.NDArray[np.integer]) -> Vector:
        """Motor ticks (…, n) to joint angles, rad, float64."""
        calibrated = self.sign * ticks + self._offset
        return np.asarray((calibrated - ZERO_TICK) * RAD_PER_TICK, dtype=np.float64)

    def to_ticks(self, rad: npt.ArrayLike) -> Ticks:
        """Joint angles (…, n) rad to motor ticks, int64. Raises ValueError unless all are finite."""
        angles = np.asarray(rad, dtype=np.float64)
        if not np.all(np.isfinite(angles)):
            raise ValueError(f"joint angles must be finite, not {angles}")
        calibrated = np.rint(angles / RAD_PER_TICK).astype(np.int64) + ZERO_TICK
        return np.asarray(self.sign * (calibrated - self._offset), dtype=np.int64)

    @property
    def limits_rad(self) -> Vector:
        """Lowest and highest calibrated angle of each joint, rad, float64 (n, 2)."""
        return np.asarray((self._range - ZERO_TICK) * RAD_PER_TICK, dtype=np.float64)

    def turns(self, ticks: npt.NDArray[np.integer]) -> Ticks:
        """Whole turns (n,) by which ``ticks`` lie away from the calibrated range.

        Encoders report one turn after power-up, so with an offset a joint may appear a turn
        off: subtract ``sign * TICKS_PER_TURN * turns`` from its ticks.
        """
        centre = self._range.mean(axis=1)
        away = (self.sign * ticks + self._offset - centre) / TICKS_PER_TURN
        return np.rint(away).astype(np.int64)

    def crosses_encoder_zero(self, index: int) -> bool:
        """The joint's range passes the point where a single-turn encoder jumps from 4095 to 0."""
        low, high = sorted(int(self.sign[index] * (c - self._offset[index])) for c in self._range[index])
        return low // TICKS_PER_TURN != high // TICKS_PER_TURN


def _read(file: Path) -> object:
    try:
        if file.stat().st_size > _MAX_FILE_BYTES:
            raise CalibrationError(f"{file} is too large for a calibration", _REDO)
        return json.loads(file.read_text())
    except FileNotFoundError as error:
        raise CalibrationError(
            f"there is no calibration {file}", "run `ratchet calibrate`, or copy the arm's file from LeRobot"
        ) from error
    except OSError as error:
        raise CalibrationError(
            f"cannot read {file}: {error.strerror}", "check the path and its permissions"
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CalibrationError(f"{file} is not valid JSON ({error})", _REDO) from error
