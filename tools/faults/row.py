"""One row of the fault table: what is done, what is promised, and what was measured."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from hal.bench.judge import WINDOW_NS, JudgeReport
from hal.types import JOINTS
from runtime.guard import GuardLimits
from runtime.streams import SERVO_HZ
from tools.faults.scene import Scene

Drive = Literal["teleop", "policy"]
Arm = Literal["moves on", "stands still", "hold", "fault", "watchdog"]
Recovery = Literal["nothing stops", "by itself", "enable", "power-cycle, enable", "start again, enable"]

TICK_RAD = 0.00154
JITTER = 1.1  # a write late by a servo period, in a span of 50 ms
DRIFT_RAD = 0.03  # an arm at full speed moves so far between its sample and its goal


@dataclass(frozen=True)
class Row:
    """A fault and its promise.

    ``done`` says what is done and ``how``. While ``drive`` drives, ``fault`` is entered; within ``within_s``
    the arm must be in ``state``: "moves on" (same mode, no longer than ``pause_s`` without a changed goal),
    "stands still" (same mode, no goal changes any more), the supervisor's "hold" or "fault", or "watchdog"
    (nobody commands it: its motors stopped by themselves). It is watched for ``watch_s``, then the block is
    left, which heals. ``recovers`` says what it takes to move again; ``mend`` is done before the arm is
    enabled. ``needs`` says what is missing on this machine, if something is. ``missed_share`` of the ticks
    may be missed. ``rig``: "shared", one of its "own" whose clock and collector obey, or "killed" for the
    course in which the service dies.
    """

    name: str
    done: str
    how: str
    fault: Callable[[Scene], AbstractAsyncContextManager[None]]
    state: Arm
    within_s: float
    recovers: Recovery
    drive: Drive = "teleop"
    watch_s: float = 1.5
    pause_s: float = 0.5
    missed_share: float = 0.1
    mend: Callable[[Scene], AbstractAsyncContextManager[None]] | None = None
    note: str = ""
    needs: Callable[[], str] = str
    rig: Literal["shared", "own", "killed"] = "shared"


class Measured(BaseModel):
    """A row as measured. ``held``: everything that the row promises was so.

    ``state_s``: seconds from the fault to its state. ``recovered_s``: from the end of the fault (or from the
    explicit enable) until the arm was driven again. ``goal_*``: the worst that any motor was told, as judged
    by the emulator (see hal/bench/judge.py); ``beyond``: by how much which limit of the guard was exceeded.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    done: str
    how: str
    drive: str
    promised: str
    within_s: float
    state: str
    state_s: float | None
    reason: str
    recovers: str
    recovered_s: float | None
    moved_before_enable: bool
    paused_s: float
    goal_distance_rad: float
    goal_step_rad: float
    goal_speed_rad_s: float
    goal_acceleration_rad_s2: float
    beyond_rad: float
    beyond_what: str
    watchdog_stops: int
    ticks: int
    missed: int
    episodes: int
    episodes_unchanged: bool
    traceback: bool
    note: str
    skipped: str = ""
    held: bool


def beyond(seen: JudgeReport, limits: GuardLimits) -> tuple[float, str]:
    """(by how much any goal broke a limit of the guard, rad, which limit of which joint); (0, "") for none.

    Position and step are exact to a tick of the motor, step being speed at servo rate; speed over 50 ms is
    allowed a late write, distance what the arm moves between sample and goal.
    """
    found = [(0.0, "")]
    for i, joint in enumerate(JOINTS):
        low, high = seen.low[i], seen.high[i]
        if low is not None and high is not None:
            found.append((limits.position_min[i] - low - TICK_RAD, f"position of {joint}"))
            found.append((high - limits.position_max[i] - TICK_RAD, f"position of {joint}"))
        found.append((seen.step[i] - limits.velocity[i] / SERVO_HZ - TICK_RAD, f"step of {joint}"))
        found.append((seen.distance[i] - limits.distance[i] - DRIFT_RAD, f"distance of {joint}"))
        fast = seen.speed[i] - limits.velocity[i] * JITTER
        found.append((fast * WINDOW_NS * 1e-9 - TICK_RAD, f"speed of {joint}"))
    excess, what = max(found)
    return round(excess, 4), what
