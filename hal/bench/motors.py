"""The contract between an emulated bus and the physics that its motors move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hal.types import Vector


@dataclass(frozen=True, slots=True)
class MotorSample:
    """The physical state of every motor of an arm, joint order, float64 (n,).

    ``position`` rad (0 is tick 2048), ``velocity`` rad/s, ``effort`` A or fraction of full load,
    ``temperature`` °C, ``voltage`` V, ``moving`` bool (n,).
    """

    position: Vector
    velocity: Vector
    effort: Vector
    temperature: Vector
    voltage: Vector
    moving: npt.NDArray[np.bool_]


class MotorBackend(Protocol):
    """Physics of one arm. Called from the emulator's thread: guard shared state."""

    def read(self) -> MotorSample:
        """The state now."""

    def set_goal(self, index: int, position: float) -> None:
        """Drive motor ``index`` to ``position`` rad; called only while its torque is on."""

    def set_torque(self, index: int, on: bool) -> None:
        """Energise or release motor ``index``."""
