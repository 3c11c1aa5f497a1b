"""Closed-form kinematics of the Koch v1.1 arm: joints ↔ tool pose in cylindrical coordinates.

Lengths (m) are the arm's published ones. Frame: x forward, y left, z up, origin where the pan
axis meets the table. At zero the upper arm stands up, the forearm and hand point forward; positive
lift, elbow and wrist lean forward and down; positive pan turns left. The gripper is closed at 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hal.types import Vector

PAN_HEIGHT = 0.0409
LIFT_OFFSET = 0.0154
SHOULDER_HEIGHT = PAN_HEIGHT + LIFT_OFFSET
ELBOW = (0.0148, 0.1083)  # forward, up, from the shoulder
WRIST = (0.10048, 0.0027)  # forward, up, from the elbow
ROLL_OFFSET = 0.045  # wrist flex axis → roll frame, along the hand
TOOL_OFFSET = 0.058  # roll frame → point between the finger pads
HAND = ROLL_OFFSET + TOOL_OFFSET

UPPER = math.hypot(*ELBOW)
FORE = math.hypot(*WRIST)
_UPPER_LEAN = math.atan2(ELBOW[0], ELBOW[1])
_FORE_RISE = math.atan2(WRIST[1], WRIST[0])
COMFORTABLE_REACH = 0.200  # of 0.2099 m: keeps the elbow off its singularity

JOINT_RANGE: tuple[tuple[float, float], ...] = (
    (-2.0, 2.0),
    (-1.6, 1.5),
    (-1.6, 1.7),
    (-1.9, 2.0),
    (-2.9, 2.9),
    (-0.1, 1.5),
)


@dataclass(frozen=True, slots=True)
class ToolPose:
    """Where the fingers are: ``azimuth`` rad about the pan axis, ``radius`` and ``height`` m of the
    point between the pads, ``pitch`` rad below the horizon, ``roll`` rad, ``gripper`` rad.
    """

    azimuth: float
    radius: float
    height: float
    pitch: float
    roll: float
    gripper: float

    def as_array(self) -> Vector:
        """The six numbers in the order of the fields."""
        return np.array(
            (self.azimuth, self.radius, self.height, self.pitch, self.roll, self.gripper), dtype=np.float64
        )

    @property
    def xyz(self) -> tuple[float, float, float]:
        """Cartesian position, m."""
        return (
            self.radius * math.cos(self.azimuth),
            self.radius * math.sin(self.azimuth),
            self.height,
        )


def forward(q: Vector) -> ToolPose:
    """Tool pose of the joint vector ``q`` (6,), rad."""
    pan, lift, elbow, wrist, roll, grip = (float(v) for v in q)
    upper = math.pi / 2 - lift - _UPPER_LEAN
    fore = _FORE_RISE - lift - elbow
    pitch = lift + elbow + wrist
    radius = UPPER * math.cos(upper) + FORE * math.cos(fore) + HAND * math.cos(pitch)
    height = SHOULDER_HEIGHT + UPPER * math.sin(upper) + FORE * math.sin(fore) - HAND * math.sin(pitch)
    return ToolPose(pan, radius, height, pitch, roll, grip)


def inverse(pose: ToolPose) -> Vector:
    """Joint vector (6,), rad, elbow up. A wrist out of reach is moved to the nearest reachable point.

    The result is clipped to the joint ranges.
    """
    r = pose.radius - HAND * math.cos(pose.pitch)
    z = pose.height + HAND * math.sin(pose.pitch) - SHOULDER_HEIGHT
    reach = min(max(math.hypot(r, z), abs(UPPER - FORE) + 0.02), UPPER + FORE - 1e-4)
    line = math.atan2(z, r)
    cosine = (reach * reach + UPPER * UPPER - FORE * FORE) / (2 * reach * UPPER)
    upper = line + math.acos(max(-1.0, min(1.0, cosine)))
    fore = math.atan2(
        reach * math.sin(line) - UPPER * math.sin(upper), reach * math.cos(line) - UPPER * math.cos(upper)
    )
    lift = math.pi / 2 - upper - _UPPER_LEAN
    elbow = _FORE_RISE - fore - lift
    wrist = pose.pitch - lift - elbow
    q = np.array((pose.azimuth, lift, elbow, wrist, pose.roll, pose.gripper), dtype=np.float64)
    return clip_to_range(q)


def clip_to_range(q: Vector) -> Vector:
    """``q`` limited to JOINT_RANGE."""
    limits = np.asarray(JOINT_RANGE)
    return np.clip(q, limits[:, 0], limits[:, 1])


def steepest_pitch(radius: float, height: float, limit: float = math.pi / 2) -> float:
    """Steepest pitch (rad, at most ``limit``) with which the tool comfortably reaches that point."""
    low, high = 0.2, limit
    if _wrist_distance(radius, height, high) <= COMFORTABLE_REACH:
        return high
    for _ in range(20):
        middle = 0.5 * (low + high)
        if _wrist_distance(radius, height, middle) <= COMFORTABLE_REACH:
            low = middle
        else:
            high = middle
    return low


def _wrist_distance(radius: float, height: float, pitch: float) -> float:
    return math.hypot(radius - HAND * math.cos(pitch), height + HAND * math.sin(pitch) - SHOULDER_HEIGHT)
