"""The real control path on the simulated world, in lockstep: as fast as the machine, same seed, same bytes.

An arm here is the bench's world behind the same servo core (interpolation, guard, expiry) that
the bus process runs; only the pseudo-terminal is left out. Time is the simulation's.
"""

from __future__ import annotations

import numpy as np

from hal.bench.world import Region, TaskState, World
from hal.clock import LockstepClock
from hal.types import Frame, JointState
from runtime.guard import GuardLimits
from runtime.nouns import Observation, Vector, Waypoint
from runtime.servo import HoldCause, ServoConfig, ServoCore
from runtime.streams import SERVO_HZ, SERVO_NS, STEPS_PER_TICK


class LockstepArm:
    """One simulated arm, its cameras and its servo core, advanced tick by tick."""

    def __init__(self, world: World, limits: GuardLimits, servo: ServoConfig) -> None:
        self.world = world
        self._clock = LockstepClock()
        self._limits = limits
        self._config = servo
        self._servo = ServoCore(limits, servo)
        self._cycle = 0
        self._tick = 0
        self._goal: Vector = world.home.copy()
        self._joints: JointState = world.joints(0, 0)

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the world's cameras."""
        return tuple(self.world.model.camera_ids)

    @property
    def goal(self) -> Vector:
        """The last goal the servo core let through, rad (6,)."""
        return self._goal

    def reset(self, seed: int, region: Region) -> None:
        """Put arm and cube at the start of the episode ``seed``; torque on, time runs on."""
        self.world.reset(seed, region)
        self.world.set_torque(True)
        self._joints = self.world.joints(self._clock.now_ns(), self._cycle)
        # The reset has moved the arm by hand: only a servo core that knows nothing of the last
        # episode's goals starts where the arm is.
        self._servo = ServoCore(self._limits, self._config)
        self._servo.start(self._joints)
        self._goal = self._joints.position.copy()
        self._tick = 0

    def resume(self) -> None:
        """What a person does who takes over an arm that a contact has stopped: enable it, with its ramp."""
        if self._servo.cause is HoldCause.CONTACT:
            self._servo.start(self._joints)

    def observe(self, *, render: bool) -> Observation:
        """The present instant; cameras only when ``render`` (rendering is most of the cost)."""
        now = self._clock.now_ns()
        frames = (
            {name: Frame(name, self._tick, now, self.world.render(name)) for name in self.cameras}
            if render
            else {}
        )
        return Observation(self._tick, now, self._joints, self._goal, frames)

    def advance(self, waypoint: Waypoint | None) -> None:
        """Run one control tick: eight servo cycles of read, guard, write, physics."""
        if waypoint is not None:
            self._servo.command(waypoint)
        for _ in range(STEPS_PER_TICK):
            step = self._servo.step(self._clock.now_ns(), self._joints)
            self.world.set_goals(step.goal)
            self.world.step(1.0 / SERVO_HZ)
            self._clock.advance(SERVO_NS)
            self._cycle += 1
            self._joints = self.world.joints(self._clock.now_ns(), self._cycle)
        self._goal = np.array(step.goal, dtype=np.float64)
        self._tick += 1

    def task(self) -> TaskState:
        """How the task stands, as the simulator (not the policy) knows it."""
        return self.world.task()
