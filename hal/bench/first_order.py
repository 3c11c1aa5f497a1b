"""Motors that approach their goal exponentially: physics enough to test a bus with."""

from __future__ import annotations

import threading

import numpy as np

from hal.bench.motors import MotorSample
from hal.clock import Clock, MonotonicClock
from hal.types import NUM_JOINTS, Vector


class FirstOrderBackend:
    """Each torqued motor follows q' = (goal − q) / τ; a released one stays where it is.

    ``effort`` is proportional to the distance to the goal, so tests can see load.
    """

    def __init__(
        self, count: int = NUM_JOINTS, time_constant_s: float = 0.05, clock: Clock | None = None
    ) -> None:
        self._clock = clock or MonotonicClock()
        self._tau = time_constant_s
        self._lock = threading.Lock()
        self._position = np.zeros(count)
        self._goal = np.zeros(count)
        self._torque = np.zeros(count, dtype=bool)
        self._temperature = np.full(count, 30.0)
        self._voltage = np.full(count, 5.0)
        self._t_ns = self._clock.now_ns()

    def read(self) -> MotorSample:
        with self._lock:
            self._advance()
            error = np.where(self._torque, self._goal - self._position, 0.0)
            velocity = error / self._tau
            return MotorSample(
                position=self._position.copy(),
                velocity=velocity,
                effort=0.2 * error,
                temperature=self._temperature.copy(),
                voltage=self._voltage.copy(),
                moving=np.abs(velocity) > 0.01,
            )

    def set_goal(self, index: int, position: float) -> None:
        with self._lock:
            self._advance()
            self._goal[index] = position

    def set_torque(self, index: int, on: bool) -> None:
        with self._lock:
            self._advance()
            self._torque[index] = on

    def place(self, position: Vector) -> None:
        """Put the joints at ``position`` rad (n,), as a hand would."""
        with self._lock:
            self._position[:] = position
            self._goal[:] = position
            self._t_ns = self._clock.now_ns()

    def set_time_constant(self, seconds: float) -> None:
        """Make the motors quicker or slower, τ > 0."""
        with self._lock:
            self._advance()
            self._tau = seconds

    def heat(self, index: int, celsius: float) -> None:
        """Set a motor's temperature, °C."""
        with self._lock:
            self._temperature[index] = celsius

    @property
    def goals(self) -> Vector:
        """Last goals given to the motors, rad (n,)."""
        with self._lock:
            return self._goal.copy()

    @property
    def torque(self) -> np.ndarray:
        """Which motors are energised, bool (n,)."""
        with self._lock:
            return self._torque.copy()

    def _advance(self) -> None:
        now_ns = self._clock.now_ns()
        decay = np.exp(-(now_ns - self._t_ns) * 1e-9 / self._tau)
        self._t_ns = now_ns
        moved = self._goal + (self._position - self._goal) * decay
        self._position = np.where(self._torque, moved, self._position)
