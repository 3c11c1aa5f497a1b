"""What goes into and comes out of the servo core: its configuration, phases, steps and counters."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from hal.types import JOINTS, NUM_JOINTS, Vector
from runtime.contact import ContactConfig
from runtime.guard import Bits

_GRIPPER = NUM_JOINTS - 1
_Angle = Annotated[FiniteFloat, Field(ge=-2 * np.pi, le=2 * np.pi)]


class Phase(IntEnum):
    """What the servo core is doing."""

    RELEASE = 0
    FOLLOW = 1
    HOLD = 2
    LOWER = 3


class HoldCause(IntEnum):
    """Why it holds."""

    NONE = 0
    STARTED = 1
    EXPIRED = 2
    ASKED = 3
    CONTACT = 4
    ESTOP = 5
    CLEARED = 6


class Verdict(IntEnum):
    """What became of a waypoint."""

    ACCEPTED = 0
    MALFORMED = 1
    OUT_OF_ORDER = 2
    EXPIRED = 3
    REFUSED = 4


class ServoConfig(BaseModel):
    """How the servo core behaves when nobody tells it otherwise.

    ``rest_pose`` rad for the five joints of the arm (the gripper stays as it is while lowering),
    ``lower_speed`` rad/s of the joint with the longest way, ``hold_limit_s`` before a hold becomes a
    lowering, ``ramp_s`` during which the velocity limit rises from ``ramp_floor`` to 1 after a start,
    ``max_ttl_s`` the longest a waypoint may live whatever it says.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rest_pose: tuple[_Angle, ...] = (0.0, -1.55, 1.65, 0.35, 0.0)
    lower_speed: float = Field(0.3, gt=0.0, le=2.0)
    settle_s: float = Field(0.5, ge=0.0, le=10.0)
    hold_limit_s: float = Field(30.0, gt=0.0, le=3600.0)
    ramp_s: float = Field(1.0, ge=0.0, le=10.0)
    ramp_floor: float = Field(0.1, gt=0.0, le=1.0)
    max_ttl_s: float = Field(2.0, gt=0.0, le=60.0)
    contact: ContactConfig | None = ContactConfig()

    @model_validator(mode="after")
    def _rest_of_the_arm(self) -> Self:
        if len(self.rest_pose) != _GRIPPER:
            raise ValueError(f"rest_pose needs {_GRIPPER} values, one for each of {', '.join(JOINTS[:-1])}")
        return self


class ServoStep(NamedTuple):
    """One servo step: goal rad and velocity rad/s (6,), guard bits (6,), and why.

    ``torque`` False means the motors should be released. ``contact_joint`` is an index into JOINTS
    or −1, ``residual`` its effort residual relative to the contact scale.
    """

    goal: Vector
    velocity: Vector
    phase: Phase
    cause: HoldCause
    clamped: Bits
    torque: bool
    contact_joint: int
    residual: float


@dataclass(slots=True)
class ServoCounters:
    """What happened to the waypoints since the core was made, and how often it had to stop."""

    accepted: int = 0
    malformed: int = 0
    out_of_order: int = 0
    expired: int = 0
    refused: int = 0
    expiries: int = 0
    contacts: int = 0
    rejected_steps: int = 0

    @property
    def dropped(self) -> int:
        """Waypoints that were not accepted, for whatever reason."""
        return self.malformed + self.out_of_order + self.expired + self.refused
