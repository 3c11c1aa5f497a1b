"""A servo core with an arm that is wherever its goal is: what its tests share."""

from __future__ import annotations

from typing import Any

import numpy as np

from hal.types import JointState
from runtime.guard import GuardLimits
from runtime.nouns import Source, Waypoint
from runtime.servo import ServoConfig, ServoCore, Verdict

STEP = 4_166_667
TICK = 33_333_333
MS = 1_000_000
DT = 1.0 / 240.0
LIMITS = GuardLimits()
LOW, HIGH, SPEED, ACCELERATION, DISTANCE = LIMITS.table()
QUICK = ServoConfig(ramp_s=0.0, hold_limit_s=0.2, settle_s=0.05, lower_speed=1.0)


def joints(t_ns: int, position: Any, velocity: Any = None, effort: Any = None) -> JointState:
    zeros = np.zeros(6)
    return JointState(
        0,
        t_ns,
        np.array(position, dtype=np.float64),
        zeros if velocity is None else np.array(velocity, dtype=np.float64),
        zeros if effort is None else np.array(effort, dtype=np.float64),
        zeros,
        zeros,
        np.zeros(6, np.uint8),
        np.zeros(6, bool),
        np.zeros(6, np.int64),
    )


class Bench:
    """A core and an arm that is wherever its goal is, unless ``blocked``."""

    def __init__(self, config: ServoConfig = QUICK, position: float = 0.0) -> None:
        self.core = ServoCore(LIMITS, config)
        self.now = 1_000 * MS
        self.position = np.full(6, position)
        self.effort = np.zeros(6)
        self.blocked = False
        self.seq = 0
        self.goals: list[np.ndarray] = []

    def joints(self) -> JointState:
        return joints(self.now, self.position, effort=self.effort)

    def start(self) -> Bench:
        self.core.start(self.joints())
        return self

    def command(self, position: Any, ahead: int = TICK, life: int = 200 * MS) -> Verdict:
        self.seq += 1
        goal = np.full(6, position) if np.isscalar(position) else position
        return self.core.command(Waypoint(goal, self.now + ahead, self.now + life, Source.POLICY, self.seq))

    def run(self, seconds: float) -> Any:
        step = None
        for _ in range(round(seconds * 240)):
            self.now += STEP
            step = self.core.step(self.now, self.joints())
            self.goals.append(step.goal)
            if not self.blocked:
                self.position = step.goal
        return step
