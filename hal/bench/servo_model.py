"""What a Dynamixel X servo does between a goal and a torque, per 240 Hz step, compiled.

Position control as in the servos' e-manual: duty = (P/128)·error[ticks]/885 of the supply, limited;
the DC motor turns duty into torque less back-EMF; the gearbox takes Coulomb friction; the winding
heats with duty². A motor gives up on the errors that its Shutdown register names. Constants:
XL430-W250 at 12 V (1.5 N·m, 61 rpm), XL330-M288 at 5 V (0.52 N·m, 103 rpm, 1.47 A); temperature
and voltage limits are the factory ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from hal.types import NUM_JOINTS, Vector

Float6 = npt.NDArray[np.float64]

ERROR_INPUT_VOLTAGE = 0x01
ERROR_OVERHEATING = 0x04
ERROR_OVERLOAD = 0x20

AMBIENT_C = 28.0
OVERLOAD_AFTER_S = 1.0
OVERLOAD_DUTY = 0.95
_TICKS_PER_RAD = 4096 / (2 * math.pi)
_VELOCITY_UNIT = 0.229 * 2 * math.pi / 60  # rad/s


class MotorKind(NamedTuple):
    """One servo model. ``ampere`` is the stall current, or 0 where only load is reported."""

    stall_nm: float
    no_load_rad_s: float
    ampere: float
    armature: float
    friction_nm: float
    heat_c_s: float
    max_temperature_c: float
    supply_v: float
    min_v: float
    shutdown: int


XL430 = MotorKind(1.5, 6.4, 0.0, 0.0065, 0.020, 0.55, 72.0, 12.0, 6.0, 0x34)
XL330 = MotorKind(0.52, 10.8, 1.47, 0.0020, 0.010, 0.70, 70.0, 5.0, 3.5, 0x35)

# (model, position P gain register, duty limit): the gripper is limited the way current-based
# position mode limits it, so that holding a cube is not a stall.
FOLLOWER_MOTORS: tuple[tuple[MotorKind, int, float], ...] = (
    (XL430, 800, 1.0),
    (XL430, 800, 1.0),
    (XL330, 1500, 1.0),
    (XL330, 1000, 1.0),
    (XL330, 800, 1.0),
    (XL330, 600, 0.5),
)

_COOLING_PER_S = 1 / 300.0
# columns of the parameter table handed to the compiled step
_STALL, _GAIN, _LIMIT, _NO_LOAD, _FRICTION, _ARMATURE, _HEAT, _HOT, _AMPERE, _SUPPLY, _MIN, _OFF = range(12)


@dataclass(frozen=True, slots=True)
class MotorFaults:
    """What is wrong with each joint's motor, float64 (6,): write into the rows, any time."""

    table: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros((4, NUM_JOINTS)))

    @property
    def friction_nm(self) -> Vector:
        """Friction added per joint, N·m."""
        return self.table[0]

    @property
    def heat_c_s(self) -> Vector:
        """Heating added per joint, °C/s."""
        return self.table[1]

    @property
    def supply_v(self) -> Vector:
        """The supply instead of the nominal one, V; 0 for the nominal one."""
        return self.table[2]

    @property
    def strain(self) -> Vector:
        """1 where the motor believes itself at full duty and so runs into its overload protection."""
        return self.table[3]

    def clear(self) -> None:
        """Back to a healthy arm."""
        self.table[:] = 0.0


def parameter_table() -> npt.NDArray[np.float64]:
    """Parameters of the follower's motors, float64 (6, 12)."""
    rows = []
    for kind, p_gain, limit in FOLLOWER_MOTORS:
        gain = p_gain / 128 * _TICKS_PER_RAD / 885
        rows.append(
            (
                kind.stall_nm,
                gain,
                limit,
                kind.no_load_rad_s,
                kind.friction_nm,
                kind.armature,
                kind.heat_c_s,
                kind.max_temperature_c,
                kind.ampere,
                kind.supply_v,
                kind.min_v,
                kind.shutdown,
            )
        )
    return np.array(rows, dtype=np.float64)


@numba.njit(cache=True, fastmath=False)
def servo_step(
    q: Float6,
    qd: Float6,
    bias: Float6,
    goal: Float6,
    enabled: npt.NDArray[np.uint8],
    table: npt.NDArray[np.float64],
    extra: npt.NDArray[np.float64],
    state: npt.NDArray[np.float64],
    errors: npt.NDArray[np.uint8],
    dt: float,
    torque: Float6,
) -> None:
    """Fill ``torque`` (6,) N·m for one step of ``dt`` s and advance the motors' own state.

    ``bias`` is gravity and Coriolis, N·m; ``extra`` (4, 6) the table of ``MotorFaults``; ``state``
    (4, 6) holds duty, temperature °C, seconds at full duty and supply V; ``errors`` collects the servos'
    hardware error bits: those in the Shutdown register keep the motor down until they are cleared.
    """
    for i in range(q.shape[0]):
        duty = 0.0
        drive = 0.0
        supply = extra[2, i] if extra[2, i] > 0.0 else table[i, _SUPPLY]
        if enabled[i] and errors[i] & np.uint8(table[i, _OFF]) == 0:
            limit = table[i, _LIMIT]
            duty = min(max(table[i, _GAIN] * (goal[i] - q[i]), -limit), limit)
            drive = table[i, _STALL] * (duty * (supply / table[i, _SUPPLY]) - qd[i] / table[i, _NO_LOAD])
        # Coulomb friction: whatever would stop this axis within the step, up to its limit. With the
        # rotor's inertia alone as estimate it can never overshoot into motion of its own.
        grip = table[i, _FRICTION] + extra[0, i]
        stop = -(table[i, _ARMATURE] * qd[i] / dt + drive - bias[i])
        torque[i] = drive + min(max(stop, -grip), grip)
        state[0, i] = duty
        warmth = table[i, _HEAT] * duty * duty + extra[1, i] - (state[1, i] - AMBIENT_C) * _COOLING_PER_S
        state[1, i] += warmth * dt
        if state[1, i] > table[i, _HOT]:
            errors[i] |= ERROR_OVERHEATING
        state[3, i] = supply
        if supply < table[i, _MIN]:
            errors[i] |= ERROR_INPUT_VOLTAGE
        if abs(duty) >= OVERLOAD_DUTY or extra[3, i] > 0.0:
            state[2, i] += dt
            if state[2, i] > OVERLOAD_AFTER_S:
                errors[i] |= ERROR_OVERLOAD
        else:
            state[2, i] = 0.0


# rows of the report
POSITION, VELOCITY, EFFORT, TEMPERATURE, VOLTAGE = range(5)


@numba.njit(cache=True, fastmath=False)
def servo_report(
    q: Float6,
    qd: Float6,
    table: npt.NDArray[np.float64],
    state: npt.NDArray[np.float64],
    out: npt.NDArray[np.float64],
) -> None:
    """Fill ``out`` (5, 6) with what the registers would say, in SI units at the registers' resolution.

    Position 2π/4096 rad, velocity 0.229 rpm, effort 1 mA or 0.1 % of full load, 1 °C, 0.1 V (full
    duty pulls the supply down by 3 %).
    """
    for i in range(q.shape[0]):
        duty = state[0, i]
        out[POSITION, i] = round(q[i] * _TICKS_PER_RAD) / _TICKS_PER_RAD
        out[VELOCITY, i] = round(qd[i] / _VELOCITY_UNIT) * _VELOCITY_UNIT
        effort = duty
        if table[i, _AMPERE] > 0.0 and duty != 0.0:
            effort = (duty - qd[i] / table[i, _NO_LOAD]) * table[i, _AMPERE]
        out[EFFORT, i] = round(effort * 1000.0) / 1000.0
        out[TEMPERATURE, i] = math.floor(state[1, i])
        supply = state[3, i] if state[3, i] > 0.0 else table[i, _SUPPLY]
        out[VOLTAGE, i] = round(supply * (1.0 - 0.03 * abs(duty)) * 10.0) / 10.0
