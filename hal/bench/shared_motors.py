"""Motors whose physics run in one process and whose bus runs in another, over shared memory."""

from __future__ import annotations

from multiprocessing.context import SpawnContext
from typing import Any

import numpy as np

from hal.bench.motors import MotorBackend, MotorSample

_ROWS = 6  # position, velocity, effort, temperature, voltage, moving
_SLOTS = 2


def allocate(context: SpawnContext, count: int) -> Any:
    """Zeroed memory for ``count`` motors, to be inherited by a child process."""
    return context.RawArray("d", 1 + (_SLOTS * _ROWS + 3) * count)


class SharedMotors:
    """Both ends of the memory. The bus's end is a MotorBackend (``read``, ``set_goal``,
    ``set_torque``); the physics' end calls ``publish`` and ``apply`` after each of its steps.

    Samples are written into two slots in turn: a bus that has priority over the physics finds a whole
    sample even while it keeps them from finishing the next one.
    """

    def __init__(self, memory: Any, count: int) -> None:
        cells = np.frombuffer(memory, dtype=np.float64)
        self._count = cells[:1]  # samples published; the newest lies in slot count % 2
        samples, asked = np.split(cells[1:], [_SLOTS * _ROWS * count])
        self._samples = samples.reshape(_SLOTS, _ROWS, count)
        self._goal, self._goal_number, self._torque = asked.reshape(3, count)
        self._seen_goal = np.zeros(count)
        self._seen_torque = np.zeros(count)

    def publish(self, sample: MotorSample) -> None:
        """Show the bus's end the state after a step of the physics."""
        slot = self._samples[int(self._count[0] + 1) % _SLOTS]
        rows = (
            sample.position,
            sample.velocity,
            sample.effort,
            sample.temperature,
            sample.voltage,
            sample.moving,
        )
        for cell, row in zip(slot, rows, strict=True):
            cell[:] = row
        self._count += 1

    def apply(self, backend: MotorBackend) -> None:
        """Pass goals and torque set at the bus's end since the last call on to ``backend``."""
        for i in np.flatnonzero(self._goal_number != self._seen_goal).tolist():
            self._seen_goal[i] = self._goal_number[i]
            backend.set_goal(i, float(self._goal[i]))
        for i in np.flatnonzero(self._torque != self._seen_torque).tolist():
            self._seen_torque[i] = self._torque[i]
            backend.set_torque(i, bool(self._torque[i]))

    def read(self) -> MotorSample:
        """The last published state, whole."""
        while True:
            before = self._count[0]
            rows = self._samples[int(before) % _SLOTS].copy()
            if self._count[0] == before:
                position, velocity, effort, temperature, voltage, moving = rows
                return MotorSample(position, velocity, effort, temperature, voltage, moving > 0)

    def set_goal(self, index: int, position: float) -> None:
        self._goal[index] = position
        self._goal_number[index] += 1

    def set_torque(self, index: int, on: bool) -> None:
        self._torque[index] = on
