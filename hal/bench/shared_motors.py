"""Motors whose physics run in one process and whose bus runs in another, over shared memory."""

from __future__ import annotations

from multiprocessing.context import SpawnContext
from typing import Any

import numpy as np

from hal.bench.motors import MotorBackend, MotorSample
from hal.errors import BenchError

_ROWS = 6  # position, velocity, effort, temperature, voltage, moving
_TRIES = 1000


def allocate(context: SpawnContext, count: int) -> Any:
    """Zeroed memory for ``count`` motors, to be inherited by a child process."""
    return context.RawArray("d", 1 + (_ROWS + 3) * count)


class SharedMotors:
    """Both ends of the memory. The bus's end is a MotorBackend (``read``, ``set_goal``,
    ``set_torque``); the physics' end calls ``publish`` and ``apply`` after each of its steps."""

    def __init__(self, memory: Any, count: int) -> None:
        cells = np.frombuffer(memory, dtype=np.float64)
        self._version = cells[:1]  # odd while a sample is being written
        rest = cells[1:].reshape(_ROWS + 3, count)
        self._sample = rest[:_ROWS]
        self._goal, self._goal_number, self._torque = rest[_ROWS:]
        self._seen_goal = np.zeros(count)
        self._seen_torque = np.zeros(count)

    def publish(self, sample: MotorSample) -> None:
        """Show the bus's end the state after a step of the physics."""
        self._version += 1
        rows = (
            sample.position,
            sample.velocity,
            sample.effort,
            sample.temperature,
            sample.voltage,
            sample.moving,
        )
        for cell, row in zip(self._sample, rows, strict=True):
            cell[:] = row
        self._version += 1

    def apply(self, backend: MotorBackend) -> None:
        """Pass goals and torque set at the bus's end since the last call on to ``backend``."""
        for i in np.flatnonzero(self._goal_number != self._seen_goal).tolist():
            self._seen_goal[i] = self._goal_number[i]
            backend.set_goal(i, float(self._goal[i]))
        for i in np.flatnonzero(self._torque != self._seen_torque).tolist():
            self._seen_torque[i] = self._torque[i]
            backend.set_torque(i, bool(self._torque[i]))

    def read(self) -> MotorSample:
        """The last published state, whole. Raises BenchError when its writer stopped half-way."""
        for _ in range(_TRIES):
            before = self._version[0]
            rows = self._sample.copy()
            if before % 2 == 0 and self._version[0] == before:
                position, velocity, effort, temperature, voltage, moving = rows
                return MotorSample(position, velocity, effort, temperature, voltage, moving > 0)
        raise BenchError("the bench's physics stopped in the middle of a step", "restart the bench")

    def set_goal(self, index: int, position: float) -> None:
        self._goal[index] = position
        self._goal_number[index] += 1

    def set_torque(self, index: int, on: bool) -> None:
        self._torque[index] = on
