"""Contact stop: a joint pushes harder than its motion explains, and falls short of it.

What a motor's effort should be while nothing is in the way is its joint's own recent average (gravity,
friction), plus what the present speed and acceleration cost. The rest is the residual, filtered as a
momentum observer does, so that no velocity is differentiated:

    r' = (effort − back_emf·v − expected − inertia·v' − r) / filter_s

(the generalised-momentum residual of De Luca and Mattone, "Actuator failure detection and isolation using
generalized momenta", 2003, for one joint at a time, in units of effort). A joint is in contact when its
residual pushes towards the goal with more than ``scale``, and the joint moves at two thirds of the speed it
is told to have or less (between that and all of it the residual counts in part), for ``sustain_s``.

Motors measure effort in units of their own (the XL430 reports load, the XL330 current), so scales belong
to motor models. The gripper, whose job is to push, is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numba
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator

from hal.dynamixel.arm import KOCH_FOLLOWER
from hal.types import JOINTS, NUM_JOINTS, JointState, Vector

FOLLOWER_MODELS: tuple[str, ...] = tuple(motor.model_name for motor in KOCH_FOLLOWER.motors)

_Positive = Annotated[FiniteFloat, Field(gt=0.0, le=100.0)]
_Share = Annotated[FiniteFloat, Field(ge=0.0, le=100.0)]


class MotorContact(BaseModel):
    """One motor model: ``scale`` of effort at which the residual is 1, ``back_emf`` of effort per rad/s,
    ``inertia`` of effort per rad/s². Effort is a fraction of full load, or A where current is measured."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale: _Positive
    back_emf: _Share = 0.0
    inertia: _Share = 0.0


# XL430: 61 rpm without load at 12 V, of which load is the duty. XL330: 1.47 A stall at 0.52 N·m.
MOTORS: Mapping[str, MotorContact] = {
    "xl430-w250": MotorContact(scale=0.30, back_emf=0.156, inertia=0.011),
    "xl330-m288": MotorContact(scale=0.52, back_emf=0.0, inertia=0.010),
}


class ContactConfig(BaseModel):
    """Thresholds of the contact stop.

    ``motors``: per motor model; what is not named keeps its default. ``ignore``: joints that may push.
    ``min_error_rad``: smallest |goal − measured| that counts. ``slow_speed``: rad/s, what a joint that is
    told to stand still is compared with. ``sustain_s``: how long a contact must last; time without one
    counts back at the rate ``forget``. ``filter_s``: time constant of the residual; ``expected_s``: of the
    expected effort.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    motors: dict[str, MotorContact] = Field(default_factory=lambda: dict(MOTORS))
    ignore: tuple[str, ...] = ("gripper",)
    min_error_rad: float = Field(0.05, gt=0.0, le=1.0)
    slow_speed: float = Field(0.3, gt=0.0, le=5.0)
    sustain_s: float = Field(0.02, ge=0.004, le=2.0)
    forget: float = Field(0.5, gt=0.0, le=10.0)
    filter_s: float = Field(0.02, ge=0.004, le=0.5)
    expected_s: float = Field(0.5, gt=0.0, le=60.0)

    @field_validator("motors", mode="before")
    @classmethod
    def _beside_the_defaults(cls, given: Any) -> Any:
        """A table that names one model leaves the others as they are; a known model's keys likewise."""
        if not isinstance(given, Mapping):
            return given
        merged: dict[str, Any] = dict(MOTORS)
        for model, values in given.items():
            known = MOTORS.get(model)
            partial = isinstance(values, Mapping) and known is not None
            merged[model] = {**known.model_dump(), **values} if known and partial else values
        return merged

    @field_validator("ignore")
    @classmethod
    def _joints(cls, ignore: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [joint for joint in ignore if joint not in JOINTS]
        if unknown:
            raise ValueError(f"there is no joint {', '.join(unknown)}; use {', '.join(JOINTS)}")
        return ignore

    def table(self, models: Sequence[str]) -> Vector:
        """(3, 6) for an arm of ``models``: scale (0: left out), back EMF, inertia of each joint.

        Raises ValueError for a model that has no entry.
        """
        missing = sorted(set(models) - set(self.motors))
        if missing:
            raise ValueError(
                f"no contact scale for {', '.join(missing)}; add [servo.contact.motors.{missing[0]}]"
            )
        rows = [self.motors[model] for model in models]
        scale = [0.0 if j in self.ignore else row.scale for j, row in zip(JOINTS, rows, strict=True)]
        return np.array([scale, [row.back_emf for row in rows], [row.inertia for row in rows]])


# Rows of the detector's memory.
_EXPECTED, _OBSERVED, _EVIDENCE = range(3)


@numba.njit(cache=True, nogil=True)
def _contact_kernel(
    memory: Vector,
    residual: Vector,
    goal: Vector,
    asked: Vector,
    position: Vector,
    velocity: Vector,
    effort: Vector,
    motors: Vector,
    thresholds: Vector,
    dt: float,
) -> int:
    """Update ``memory`` (3, n) and ``residual`` (n,), scaled, towards the goal; the joint in contact or −1.

    ``asked`` is the goals' velocity. ``thresholds``: min_error_rad, slow_speed, sustain_s, filter_s,
    expected_s, forget.
    """
    found = -1
    for i in range(goal.shape[0]):
        residual[i] = 0.0
        error = goal[i] - position[i]
        scale, speed = motors[0, i], velocity[i]
        if scale <= 0.0 or not (np.isfinite(error) and np.isfinite(speed) and np.isfinite(effort[i])):
            memory[_EVIDENCE, i] = 0.0
            continue
        torque = effort[i] - motors[1, i] * speed
        carried = motors[2, i] * speed / thresholds[3]
        raw = memory[_OBSERVED, i] - carried
        memory[_OBSERVED, i] += dt * (torque - memory[_EXPECTED, i] - raw) / thresholds[3]
        raw = memory[_OBSERVED, i] - carried
        way = 1.0 if error > 0.0 else -1.0
        residual[i] = way * raw / scale
        # A push is not taken for gravity, or not before long.
        learn = dt / thresholds[4]
        if abs(raw) > 0.5 * scale and abs(error) >= thresholds[0]:
            learn *= 0.1
        memory[_EXPECTED, i] += raw * min(learn, 1.0)
        # 1 up to two thirds of the speed it is told to have, 0 at that speed.
        moves = way * speed / max(way * asked[i], thresholds[1])
        short = min(max(3.0 * (1.0 - moves), 0.0), 1.0)
        if residual[i] * short >= 1.0 and abs(error) >= thresholds[0]:
            memory[_EVIDENCE, i] += dt
        else:  # a joint bounces off what it meets: a moment of motion is no proof that it is free
            memory[_EVIDENCE, i] = max(memory[_EVIDENCE, i] - thresholds[5] * dt, 0.0)
        sustained = memory[_EVIDENCE, i] >= thresholds[2] - 1e-9
        if sustained and (found < 0 or residual[i] > residual[found]):
            found = i
    return found


class ContactDetector:
    """Watches one arm of motors ``models``; deterministic, no I/O, a few µs an update."""

    def __init__(self, config: ContactConfig, dt_s: float, models: Sequence[str] = FOLLOWER_MODELS) -> None:
        self.residual = np.zeros(NUM_JOINTS)
        self._memory = np.zeros((3, NUM_JOINTS))
        self._motors = config.table(models)
        self._thresholds = np.array(
            [
                config.min_error_rad,
                config.slow_speed,
                config.sustain_s,
                config.filter_s,
                config.expected_s,
                config.forget,
            ]
        )
        self._dt_s = dt_s

    def reset(self, measured: JointState) -> None:
        """Forget everything; ``measured`` shows what standing still takes now."""
        effort, speed = measured.effort, measured.velocity
        sound = np.isfinite(effort) & np.isfinite(speed)
        self._memory[:] = 0.0
        self._memory[_EXPECTED] = np.where(sound, effort - self._motors[1] * speed, 0.0)
        self._memory[_OBSERVED] = np.where(sound, self._motors[2] * speed / self._thresholds[3], 0.0)
        self.residual[:] = 0.0

    def update(self, goal: Vector, asked: Vector, measured: JointState) -> int:
        """Index of the joint in contact, or −1.

        ``goal`` rad and ``asked``, the goals' velocity in rad/s, (6,). ``residual`` (6,) then holds each
        joint's push towards its goal beyond the expected one, 1 at its motor's scale.
        """
        return int(
            _contact_kernel(
                self._memory,
                self.residual,
                goal,
                asked,
                measured.position,
                measured.velocity,
                measured.effort,
                self._motors,
                self._thresholds,
                self._dt_s,
            )
        )
