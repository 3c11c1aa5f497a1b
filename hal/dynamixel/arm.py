"""Which motors make up an arm: joint names, ids, models, operating modes."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hal.dynamixel.packet import MAX_ID
from hal.dynamixel.tables import CURRENT_POSITION_MODE, MODELS, POSITION_MODE, Model
from hal.types import JOINTS


class Gains(BaseModel):
    """Position loop gains in register units; RAM, so they are written at every start."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    p: int = Field(ge=0, le=16_383)
    i: int = Field(ge=0, le=16_383)
    d: int = Field(ge=0, le=16_383)


class MotorSpec(BaseModel):
    """One motor: the joint it moves, its bus id, its model and the operating mode it works in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    joint: str
    id: int = Field(ge=0, le=MAX_ID)
    model_name: str
    operating_mode: int = POSITION_MODE
    gains: Gains | None = None

    @property
    def model(self) -> Model:
        return MODELS[self.model_name]

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.model_name not in MODELS:
            raise ValueError(f"motor model {self.model_name!r} is not one of {', '.join(MODELS)}")
        if self.operating_mode not in self.model.modes:
            raise ValueError(f"{self.model_name} has no operating mode {self.operating_mode}")
        return self

    def __str__(self) -> str:
        return f"motor {self.id} ({self.joint})"


class ArmSpec(BaseModel):
    """The motors of one arm in joint order. Ids and joints are unique."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    motors: tuple[MotorSpec, ...] = Field(min_length=1, max_length=32)

    @model_validator(mode="after")
    def _unique(self) -> Self:
        for what in ("id", "joint"):
            values = [getattr(motor, what) for motor in self.motors]
            if len(set(values)) != len(values):
                raise ValueError(f"arm {self.name!r} has the same {what} twice")
        return self

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(motor.id for motor in self.motors)

    @property
    def joints(self) -> tuple[str, ...]:
        return tuple(motor.joint for motor in self.motors)


def _koch(name: str, models: tuple[str, ...], gains: dict[str, Gains]) -> ArmSpec:
    motors = tuple(
        MotorSpec(
            joint=joint,
            id=i + 1,
            model_name=model,
            operating_mode=CURRENT_POSITION_MODE if joint == "gripper" else POSITION_MODE,
            gains=gains.get(joint),
        )
        for i, (joint, model) in enumerate(zip(JOINTS, models, strict=True))
    )
    return ArmSpec(name=name, motors=motors)


KOCH_FOLLOWER = _koch(
    "koch_follower",
    ("xl430-w250",) * 2 + ("xl330-m288",) * 4,
    {"elbow_flex": Gains(p=1500, i=0, d=600)},  # LeRobot's value: the elbow sags with the default
)
KOCH_LEADER = _koch("koch_leader", ("xl330-m077",) * 6, {})
