"""Motors for the emulated buses: the follower's live in the world, the leader's in a hand.

The buses run in a process of their own. What they ask for is queued and applied by the bench's loop
before its next step; what they read is the sample published after the last one.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from hal.bench.motors import MotorSample
from hal.bench.servo_model import AMBIENT_C
from hal.bench.world import SERVO_DT_S, World
from hal.types import NUM_JOINTS, Vector

_HAND_SPEED = 4.0  # rad/s: how fast a person swings the leader
_SPRING_S = 0.08
_LEADER_V = 5.0
_MOVING_RAD_S = 0.1


class FollowerBackend:
    """The follower's six motors. Until a motor is first energised, a hand holds it where it is."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._asked: deque[tuple[int, float | bool]] = deque()
        self._goal = world.goals
        self._held = [True] * NUM_JOINTS
        self._torque = [False] * NUM_JOINTS
        self.publish()

    def read(self) -> MotorSample:
        """The state after the last step."""
        return self._sample

    def set_goal(self, index: int, position: float) -> None:
        """Ask motor ``index`` to go to ``position`` rad."""
        self._asked.append((index, float(position)))

    def set_torque(self, index: int, on: bool) -> None:
        """Ask motor ``index`` to be energised or released."""
        self._asked.append((index, bool(on)))

    @property
    def energised(self) -> bool:
        """Whether any motor's torque is on."""
        return any(self._torque)

    def hold(self) -> None:
        """Take the released arm in hand where it is now (after a reset of the world)."""
        self._held = [True] * NUM_JOINTS
        self._world.set_torque(True)
        self._goal = self._world.goals

    def apply(self) -> None:
        """Hand what was asked since the last step to the world. Called by the bench's loop."""
        while self._asked:
            index, value = self._asked.popleft()
            if isinstance(value, bool):
                self._switch(index, value)
            else:
                self._goal[index] = value
                if not self._held[index]:
                    self._world.set_motor_goal(index, value)

    def publish(self) -> None:
        """Publish the world's state to the bus. Called by the bench's loop."""
        state = self._world.joints(0, 0)
        self._sample = MotorSample(
            position=self._world.position,
            velocity=state.velocity,
            effort=np.where(self._held, 0.0, state.effort),
            temperature=state.temperature,
            voltage=state.voltage,
            moving=state.moving,
        )

    def _switch(self, index: int, on: bool) -> None:
        self._torque[index] = on
        if on:
            self._held[index] = False
            self._world.clear_errors(index)
            self._world.set_motor_goal(index, float(self._goal[index]))
        if not self._held[index]:
            self._world.set_motor_torque(index, on)


class LeaderBackend:
    """A leader arm without weight: it goes where the hand moves it, else where its torque pulls it."""

    def __init__(self, position: Vector) -> None:
        self._asked: deque[tuple[int, float | bool]] = deque()
        self._position = position.copy()
        self._goal = position.copy()
        self._torque = np.zeros(NUM_JOINTS, dtype=bool)
        self._hand: Vector | None = None
        self._steps_left = 0
        self._publish(np.zeros(NUM_JOINTS))

    def read(self) -> MotorSample:
        """The state after the last step."""
        return self._sample

    def set_goal(self, index: int, position: float) -> None:
        """Ask motor ``index`` to go to ``position`` rad."""
        self._asked.append((index, float(position)))

    def set_torque(self, index: int, on: bool) -> None:
        """Ask motor ``index`` to be energised or released."""
        self._asked.append((index, bool(on)))

    def place(self, position: Vector) -> None:
        """Put the leader at ``position`` (6,), rad, and let go."""
        self._position = position.copy()
        self._hand = None

    def guide(self, target: Vector, steps: int) -> None:
        """Move by hand to ``target`` (6,), rad, within ``steps`` servo steps, or as fast as a hand can."""
        self._hand, self._steps_left = target.copy(), steps

    def let_go(self) -> None:
        """The hand leaves the arm where it is."""
        self._hand = None

    def step(self) -> None:
        """Advance by one servo step. Called by the bench's loop."""
        while self._asked:
            index, value = self._asked.popleft()
            if isinstance(value, bool):
                self._torque[index] = value
            else:
                self._goal[index] = value
        if self._hand is not None:
            move = (self._hand - self._position) / max(1, self._steps_left)
            self._steps_left -= 1
        else:
            move = np.where(self._torque, (self._goal - self._position) * (SERVO_DT_S / _SPRING_S), 0.0)
        move = np.clip(move, -_HAND_SPEED * SERVO_DT_S, _HAND_SPEED * SERVO_DT_S)
        self._position = self._position + move
        self._publish(move / SERVO_DT_S)

    def _publish(self, velocity: Vector) -> None:
        self._sample = MotorSample(
            position=self._position,
            velocity=velocity,
            effort=np.where(self._torque, 0.2 * (self._goal - self._position), 0.0),
            temperature=np.full(NUM_JOINTS, AMBIENT_C),
            voltage=np.full(NUM_JOINTS, _LEADER_V),
            moving=np.abs(velocity) > _MOVING_RAD_S,
        )
