"""Contact stop: pushing hard, not moving, and the position error grows.

XL430 motors report load, XL330 motors current, so what counts as hard is a scale per joint. What is
expected is each joint's own slow average (gravity, friction) learnt while it follows well. The
thresholds are meant to miss a soft touch rather than to stop a normal motion; the gripper, whose job
is to push without moving, is left out.
"""

from __future__ import annotations

from typing import Annotated, Self

import numba
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from hal.types import JOINTS, NUM_JOINTS, JointState, Vector

_Scale = Annotated[FiniteFloat, Field(ge=0.0, le=20.0)]


class ContactConfig(BaseModel):
    """Thresholds of the contact stop.

    ``scale``: effort above the expected one at which the residual is 1, in the joint's own unit (load
    fraction for the XL430 of shoulder_pan and shoulder_lift, A for the XL330); 0 leaves a joint out.
    ``min_error_rad``: smallest |goal − measured| that counts. ``max_speed``: rad/s above which a joint
    is moving, not blocked. ``growth_rad``: how much the error must have grown over ``sustain_s``.
    ``expected_s``: time constant of the expected effort.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale: tuple[_Scale, ...] = (0.6, 0.6, 1.0, 1.0, 1.0, 0.0)
    min_error_rad: float = Field(0.12, gt=0.0, le=1.0)
    max_speed: float = Field(0.3, gt=0.0, le=5.0)
    growth_rad: float = Field(0.01, ge=0.0, le=0.5)
    sustain_s: float = Field(0.12, ge=0.02, le=2.0)
    expected_s: float = Field(1.0, gt=0.0, le=60.0)

    @model_validator(mode="after")
    def _one_scale_a_joint(self) -> Self:
        if len(self.scale) != NUM_JOINTS:
            raise ValueError(f"scale needs {NUM_JOINTS} values, one for each of {', '.join(JOINTS)}")
        return self


@numba.njit(cache=True, nogil=True)
def _contact_kernel(
    memory: Vector,
    residual: Vector,
    goal: Vector,
    position: Vector,
    velocity: Vector,
    effort: Vector,
    scale: Vector,
    thresholds: Vector,
    dt: float,
) -> int:
    """Update ``memory`` (3, n: expected effort, streak s, error at its start); the joint in contact or −1.

    ``thresholds``: min_error_rad, max_speed, growth_rad, sustain_s, expected_s.
    """
    found = -1
    for i in range(goal.shape[0]):
        residual[i] = 0.0
        error = goal[i] - position[i]
        sane = np.isfinite(error) and np.isfinite(velocity[i]) and np.isfinite(effort[i])
        if scale[i] <= 0.0 or not sane:
            memory[1, i] = 0.0
            continue
        size = abs(error)
        if size < thresholds[0]:
            memory[0, i] += (effort[i] - memory[0, i]) * min(dt / thresholds[4], 1.0)
            memory[1, i] = 0.0
            continue
        residual[i] = np.sign(error) * (effort[i] - memory[0, i]) / scale[i]
        if residual[i] < 1.0 or abs(velocity[i]) > thresholds[1]:
            memory[1, i] = 0.0
            continue
        if memory[1, i] == 0.0:
            memory[2, i] = size
        memory[1, i] += dt
        grown = size - memory[2, i] >= thresholds[2]
        if memory[1, i] >= thresholds[3] and grown and (found < 0 or residual[i] > residual[found]):
            found = i
    return found


class ContactDetector:
    """Watches one arm; deterministic, no I/O, a few µs an update."""

    def __init__(self, config: ContactConfig, dt_s: float) -> None:
        self.residual = np.zeros(NUM_JOINTS)
        self._memory = np.zeros((3, NUM_JOINTS))
        self._scale = np.array(config.scale, dtype=np.float64)
        self._thresholds = np.array(
            [config.min_error_rad, config.max_speed, config.growth_rad, config.sustain_s, config.expected_s]
        )
        self._dt_s = dt_s

    def reset(self, effort: Vector) -> None:
        """Forget everything; ``effort`` (6,) is what holding still takes now."""
        self._memory[:] = 0.0
        self._memory[0] = np.where(np.isfinite(effort), effort, 0.0)
        self.residual[:] = 0.0

    def update(self, goal: Vector, measured: JointState) -> int:
        """Index of the joint in contact, or −1. ``residual`` (6,) holds the scaled residuals of this step."""
        return int(
            _contact_kernel(
                self._memory,
                self.residual,
                goal,
                measured.position,
                measured.velocity,
                measured.effort,
                self._scale,
                self._thresholds,
                self._dt_s,
            )
        )
