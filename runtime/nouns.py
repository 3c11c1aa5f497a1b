"""The nouns of the control path: Observation, ActionChunk, Waypoint, Flag.

All angles rad, all times monotonic nanoseconds, all arrays owned by the holder (never views
into a ring).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from hal.types import Frame, JointState

Vector = npt.NDArray[np.float64]
ChunkArray = npt.NDArray[np.float32]


class Source(IntEnum):
    """Who asked for the motion of a tick; recorded per tick in the stream ``tick.source``."""

    NONE = 0
    TELEOP = 1
    POLICY = 2
    INTERVENTION = 3
    REPLAY = 4


@dataclass(frozen=True, slots=True)
class Observation:
    """One instant as the control loop sees it.

    ``tick`` counts control ticks since the loop started. ``goal`` is the last goal the servo
    core let through to the motors, rad, float64 (6,). ``leader`` is the leader arm's state
    while one is connected. ``frames`` holds the newest frame of each camera.
    """

    tick: int
    t_ns: int
    joints: JointState
    goal: Vector
    frames: dict[str, Frame]
    leader: JointState | None = None


@dataclass(frozen=True, slots=True)
class ActionChunk:
    """Actions for the ticks from ``start_tick`` on, as one policy version saw them.

    ``actions`` float32 (H, 6) rad; row i is meant for tick ``start_tick + i``, where
    ``start_tick`` is the tick of the observation it was computed from. ``features`` float32 (D,)
    are the encoder's pooled features (for the unfamiliarity monitor). ``epoch`` rises with each
    swap on the server; ``exec_ms`` is the inference's own execution time.
    """

    actions: ChunkArray
    start_tick: int
    obs_t_ns: int
    version: str
    epoch: int
    exec_ms: float
    features: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Waypoint:
    """A goal with the time to be there and the time after which it no longer counts.

    With ``leader`` it is the word that the leader arm may drive until ``expires_ns``: its own samples
    then stand in for ``position`` and ``target_ns``, as often as they come.
    """

    position: Vector
    target_ns: int
    expires_ns: int
    source: Source
    seq: int
    leader: bool = False


@dataclass(frozen=True, slots=True)
class Flag:
    """Something a monitor noticed: kind, span, score relative to its threshold, evidence."""

    kind: str
    start_ns: int
    end_ns: int
    score: float
    evidence: dict[str, Any] = field(default_factory=dict)
