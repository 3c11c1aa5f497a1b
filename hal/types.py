"""What crosses the hardware boundary: joint states and camera frames, in SI units.

Raw servo ticks live only inside ``hal``; everything here is rad, rad/s, A, °C, V and
monotonic nanoseconds. Joint names follow LeRobot's Koch robot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

JOINTS: tuple[str, ...] = (
    "shoulder_pan",
    "shoulder_lift",
    "elbow_flex",
    "wrist_flex",
    "wrist_roll",
    "gripper",
)
NUM_JOINTS = len(JOINTS)

Vector = npt.NDArray[np.float64]
Image = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class JointState:
    """One sample of every motor of an arm.

    ``position`` rad, ``velocity`` rad/s, ``effort`` A (motors that measure current) or the
    signed fraction of full load (XL430, which has no current sensing), ``temperature`` °C,
    ``voltage`` V: float64, shape (6,). ``hardware_error`` is the servo's error byte, uint8 (6,).
    ``moving`` is bool (6,). ``age_ns`` int64 (6,) is how old each motor's values are: 0 for a
    fresh reply, more while coasting over lost ones. ``t_ns`` is the monotonic time at which the
    sample was taken, ``seq`` rises by one per bus cycle.
    """

    seq: int
    t_ns: int
    position: Vector
    velocity: Vector
    effort: Vector
    temperature: Vector
    voltage: Vector
    hardware_error: npt.NDArray[np.uint8]
    moving: npt.NDArray[np.bool_]
    age_ns: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Frame:
    """One camera image: uint8 RGB (H, W, 3), its capture time (monotonic ns) and sequence number.

    ``repeated`` is True when the device handed out the same picture again. ``driver_stamp`` tells whether
    ``t_ns`` is the driver's own stamp or, where there is none, the time at which the picture arrived here.
    """

    camera: str
    seq: int
    t_ns: int
    image: Image
    repeated: bool = False
    driver_stamp: bool = False


@runtime_checkable
class Camera(Protocol):
    """Life cycle of every camera: ``start`` → ``read`` … → ``stop``."""

    name: str

    def start(self) -> None:
        """Open the device. Raises CameraError with the remedy when it cannot."""

    def read(self, timeout_s: float) -> Frame:
        """Wait for the next frame. Raises CameraError when none came within ``timeout_s``."""

    def stop(self) -> None:
        """Close the device; safe to call twice."""
