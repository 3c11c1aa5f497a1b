"""The guard: the last thing between any command and the motors.

One pure step per servo period. From the previous goal and its velocity it moves towards what is
wanted, and whatever is wanted the goal that comes out

* is finite and stays inside the position limits (a goal that starts outside may only come in);
* moves no faster than the velocity limit;
* stays within a distance of the measured pose, so the position loop of a blocked motor cannot wind up;
* changes velocity no faster than the acceleration limit, braking early enough to stop at every limit.

In that order: where they conflict the earlier line wins. They conflict only when the measured pose
itself comes towards the goal's back (an arm pushed or falling); then the goal follows it, which
lowers the force on the motor.
"""

from __future__ import annotations

from enum import IntFlag
from typing import Annotated, NamedTuple, Self

import numba
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from hal.types import JOINTS, NUM_JOINTS, Vector

Bits = npt.NDArray[np.uint8]

_Angle = Annotated[FiniteFloat, Field(ge=-4 * np.pi, le=4 * np.pi)]
_Speed = Annotated[FiniteFloat, Field(gt=0.0, le=30.0)]
_Rate = Annotated[FiniteFloat, Field(gt=0.0, le=2000.0)]
_Reach = Annotated[FiniteFloat, Field(gt=0.0, le=2 * np.pi)]


class Clamp(IntFlag):
    """Why a joint's goal is not what was asked for, one bit per reason."""

    POSITION = 1
    VELOCITY = 2
    ACCELERATION = 4
    DISTANCE = 8
    REJECTED = 16


# The same as plain numbers, for the kernels.
_POSITION, _VELOCITY, _ACCELERATION, _DISTANCE, _REJECTED = 1, 2, 4, 8, 16


class GuardLimits(BaseModel):
    """Limits per joint in the order of ``hal.types.JOINTS``.

    ``position_min``/``position_max`` rad, ``velocity`` rad/s, ``acceleration`` rad/s²,
    ``distance`` rad (from the measured pose). The defaults suit a Koch v1.1: positions span a turn
    until a calibration narrows them, the gripper may press further behind what it measures because
    that is how it grips.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    position_min: tuple[_Angle, ...] = (-3.15,) * NUM_JOINTS
    position_max: tuple[_Angle, ...] = (3.15,) * NUM_JOINTS
    velocity: tuple[_Speed, ...] = (3.5, 3.5, 3.5, 3.5, 3.5, 5.0)
    acceleration: tuple[_Rate, ...] = (40.0, 40.0, 40.0, 40.0, 40.0, 80.0)
    distance: tuple[_Reach, ...] = (0.6, 0.6, 0.6, 0.6, 0.6, 1.0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("position_min", "position_max", "velocity", "acceleration", "distance"):
            if len(getattr(self, name)) != NUM_JOINTS:
                raise ValueError(f"{name} needs {NUM_JOINTS} values, one for each of {', '.join(JOINTS)}")
        for joint, low, high in zip(JOINTS, self.position_min, self.position_max, strict=True):
            if not low < high:
                raise ValueError(f"{joint}: position_min {low} must be below position_max {high}")
        return self

    def narrowed(self, low: Vector, high: Vector) -> GuardLimits:
        """These limits inside the range (rad, each (6,)) that a calibration found.

        Raises ValueError when a joint would be left without any range.
        """
        position_min = np.maximum(self.position_min, low)
        position_max = np.minimum(self.position_max, high)
        fields = self.model_dump()
        fields["position_min"] = tuple(float(value) for value in position_min)
        fields["position_max"] = tuple(float(value) for value in position_max)
        return GuardLimits(**fields)

    def table(self) -> Vector:
        """The limits as the kernels take them: (5, 6), rows min, max, velocity, acceleration, distance."""
        return np.array(
            [self.position_min, self.position_max, self.velocity, self.acceleration, self.distance],
            dtype=np.float64,
        )


class GuardResult(NamedTuple):
    """Goal rad, its velocity rad/s, and the ``Clamp`` bits of each joint; all shape (6,)."""

    goal: Vector
    velocity: Vector
    clamped: Bits


@numba.njit(cache=True, nogil=True)
def stopping_distance(speed: float, acceleration: float, dt: float) -> float:
    """Distance still covered when ``speed`` ≥ 0 falls by ``acceleration·dt`` from the next step on.

    The exact sum of the discrete steps: with speed = (n + f)·a·dt it is a·dt²·n·(n − 1 + 2f)/2.
    """
    steps = speed / (acceleration * dt)
    whole = np.floor(steps)
    part = steps - whole
    return acceleration * dt * dt * whole * (whole - 1.0 + 2.0 * part) / 2.0


@numba.njit(cache=True, nogil=True)
def braking_speed(distance: float, acceleration: float, dt: float) -> float:
    """Highest speed now from which braking by ``acceleration·dt`` a step ends within ``distance`` ≥ 0.

    Inverse of the discrete sum: with speed = (n + f)·a·dt, this step and the ones that brake cover
    a·dt²·(n + 1)·(n + 2f)/2.
    """
    unit = acceleration * dt * dt
    scaled = distance / unit
    whole = np.floor((np.sqrt(1.0 + 8.0 * scaled) - 1.0) / 2.0)
    part = min(max(scaled / (whole + 1.0) - whole / 2.0, 0.0), 1.0)
    return (whole + part) * acceleration * dt


@numba.njit(cache=True, nogil=True)
def _guard_joint(
    goal: float,
    velocity: float,
    wanted: float,
    wanted_velocity: float,
    measured: float,
    limits: Vector,
    speed_scale: float,
    dt: float,
) -> tuple[float, float, int]:
    """One joint; see ``guard_step``. ``limits`` is its column of the table."""
    low, high = min(limits[0], goal), max(limits[1], goal)
    acceleration, reach = limits[3], limits[4]
    # A scale that falls while the joint moves is met by braking, not by a jolt.
    top_speed = min(max(limits[2] * speed_scale, abs(velocity) - acceleration * dt), limits[2])
    window_low = min(max(measured - reach, low), high)
    window_high = max(min(measured + reach, high), low)
    bits = 0
    target = min(max(wanted, window_low), window_high)
    if target != wanted:
        bits |= _POSITION if wanted < low or wanted > high else _DISTANCE

    # Follow the moving target; close what is missing no faster than can be braked relative to it.
    ahead = min(max(wanted_velocity, -top_speed), top_speed)
    missing = target - ahead * dt - goal
    closing = braking_speed(abs(missing), acceleration, dt)
    step = ahead + closing if missing > 0.0 else ahead - closing

    if abs(step) > top_speed * (1.0 + 1e-9) or abs(wanted_velocity) > top_speed:
        bits |= _VELOCITY
    step = min(max(step, -top_speed), top_speed)
    slow, fast = velocity - acceleration * dt, velocity + acceleration * dt
    if step < slow - 1e-9 or step > fast + 1e-9:
        bits |= _ACCELERATION
    step = min(max(step, slow), fast)

    least, most = _edge_speeds(window_high - goal, goal - window_low, acceleration, dt)
    if step > most:
        bits |= _POSITION if window_high == high else _DISTANCE
    elif step < least:
        bits |= _POSITION if window_low == low else _DISTANCE
    step = min(max(step, least), most)
    step = min(max(step, -top_speed), top_speed)
    moved = min(max(goal + step * dt, low), high)
    return moved, (moved - goal) / dt, bits


@numba.njit(cache=True, nogil=True)
def _edge_speeds(room_up: float, room_down: float, acceleration: float, dt: float) -> tuple[float, float]:
    """Lowest and highest speed that still stop at the window's edges, ``room`` rad away up and down.

    Negative room: the window has left the goal behind, and going back to it comes before braking.
    """
    most = braking_speed(max(room_up, 0.0), acceleration, dt)
    least = -braking_speed(max(room_down, 0.0), acceleration, dt)
    if room_up < 0.0:
        most = room_up / dt
        least = min(least, most)
    elif room_down < 0.0:
        least = -room_down / dt
        most = max(least, most)
    return least, most


@numba.njit(cache=True, nogil=True)
def guard_kernel(
    state: Vector,
    wanted: Vector,
    measured: Vector,
    table: Vector,
    speed_scale: float,
    dt: float,
    clamped: Bits,
) -> bool:
    """Advance ``state`` (2, n: goal, velocity) in place towards ``wanted`` (2, n: position, velocity).

    ``table`` as ``GuardLimits.table``. Writes ``Clamp`` bits into ``clamped``. False when ``wanted``
    or ``measured`` was not finite: the joints then brake and hold.
    """
    joints = state.shape[1]
    sound = True
    for i in range(joints):
        sound = sound and np.isfinite(wanted[0, i]) and np.isfinite(wanted[1, i]) and np.isfinite(measured[i])
    for i in range(joints):
        goal, velocity = state[0, i], state[1, i]
        if sound:
            position, speed, pose, bits = wanted[0, i], wanted[1, i], measured[i], 0
        else:
            rest = stopping_distance(abs(velocity), table[3, i], dt)
            position, speed, bits = goal + (rest if velocity > 0.0 else -rest), 0.0, _REJECTED
            pose = measured[i] if np.isfinite(measured[i]) else goal
        moved, moving, why = _guard_joint(goal, velocity, position, speed, pose, table[:, i], speed_scale, dt)
        state[0, i], state[1, i] = moved, moving
        clamped[i] = bits | why
    return sound


def guard_step(
    prev_goal: Vector,
    prev_velocity: Vector,
    wanted: Vector,
    measured: Vector,
    limits: GuardLimits,
    dt: float,
    wanted_velocity: Vector | None = None,
    speed_scale: float = 1.0,
) -> GuardResult:
    """The next goal from the previous one, everything float64 (6,) in rad and rad/s.

    ``wanted`` is where to be at the end of this step, ``wanted_velocity`` how fast that target itself
    moves (none: it stands still). ``speed_scale`` in (0, 1] lowers the velocity limit; a joint that is
    faster brakes to it. NaN or infinity anywhere in ``wanted`` or ``measured`` brakes every joint and holds
    it.
    """
    state = np.stack([prev_goal, prev_velocity]).astype(np.float64)
    target = np.stack([wanted, np.zeros(NUM_JOINTS) if wanted_velocity is None else wanted_velocity])
    clamped = np.zeros(NUM_JOINTS, np.uint8)
    guard_kernel(
        state,
        target.astype(np.float64),
        np.asarray(measured, np.float64),
        limits.table(),
        speed_scale,
        dt,
        clamped,
    )
    return GuardResult(state[0].copy(), state[1].copy(), clamped)
