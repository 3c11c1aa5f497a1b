"""Doing one row of the fault table to a rig, and measuring what comes of it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from hal.bench.judge import GoalLog, JudgeReport
from hal.types import NUM_JOINTS
from runtime.remote.client import RobotCallError
from tools.errors import UsageError
from tools.faults.rig import Rig
from tools.faults.row import TICK_RAD, Arm, Measured, Row, beyond
from tools.faults.scene import PATIENCE_S, POLL_S, STILL_S, Scene, driving

_LATE_S = 1.0  # a state that is late is still waited for, to say how late
_SURE_S = 1.0  # so long an arm that needs a person is watched for moving without one


@dataclass(slots=True)
class Outcome:
    """What a row's course showed."""

    state: str = ""
    state_s: float | None = None
    reason: str = ""
    recovered_s: float | None = None
    moved_before_enable: bool = False
    paused_s: float = 0.0
    ticks: int = 0
    missed: int = 0


async def run_row(rig: Rig, row: Row) -> Measured:
    """Drive, break, watch, heal, recover. Raises UsageError when the rig could not be driven at all."""
    before, log_size = rig.digests(), rig.log.stat().st_size
    outcome = Outcome()
    async with driving(rig, row.drive) as scene:
        rig.bench.judge_reset()
        loop = (await scene.robot.state()).loop
        await _break(scene, row, outcome)
        await _recover(scene, row, outcome)
        after = (await scene.robot.state()).loop
        outcome.ticks, outcome.missed = after.ticks - loop.ticks, after.missed - loop.missed
        seen = rig.bench.judge()
        note = "; ".join(part for part in (row.note, *scene.notes) if part)
    return measured(rig, row, outcome, seen, before, log_size, note)


def measured(
    rig: Rig,
    row: Row,
    outcome: Outcome,
    seen: JudgeReport,
    before: dict[str, str],
    log_size: int,
    note: str,
) -> Measured:
    """The row's figures, and whether it held."""
    now = rig.digests()
    unchanged = {episode: now.get(episode) for episode in before} == before
    traceback = "Traceback" in rig.said(log_size)
    excess, what = beyond(seen, rig.limits)
    in_time = outcome.state == row.state and outcome.state_s is not None and outcome.state_s <= row.within_s
    paced = outcome.missed <= row.missed_share * outcome.ticks and outcome.paused_s <= row.pause_s
    came_back = outcome.recovered_s is not None and not outcome.moved_before_enable
    return Measured(
        **_figures(row, outcome, seen),
        beyond_rad=excess,
        beyond_what=what,
        episodes=len(before),
        episodes_unchanged=unchanged,
        traceback=traceback,
        note=note,
        held=in_time and came_back and excess == 0.0 and unchanged and not traceback and paced,
    )


def without(row: Row, *, reason: str = "", skipped: str = "") -> Measured:
    """A row that came to nothing: what went wrong, or what is missing on this machine."""
    nothing = (0.0,) * NUM_JOINTS
    seen = JudgeReport(
        reset_ns=0,
        writes=0,
        low=(None,) * NUM_JOINTS,
        high=(None,) * NUM_JOINTS,
        distance=nothing,
        step=nothing,
        yielded=nothing,
        speed=nothing,
        acceleration=nothing,
        last_write_ns=0,
        last_change_ns=0,
        torque=(False,) * NUM_JOINTS,
        watchdog_stops=0,
    )
    figures = _figures(row, Outcome(reason=reason), seen)
    return Measured(
        **figures,
        beyond_rad=0.0,
        beyond_what="",
        episodes=0,
        episodes_unchanged=True,
        traceback=False,
        note=row.note,
        skipped=skipped,
        held=False,
    )


def _figures(row: Row, outcome: Outcome, seen: JudgeReport) -> dict[str, Any]:
    """What every row says of itself, of its course and of the goals."""
    return {
        "name": row.name,
        "done": row.done,
        "how": row.how,
        "drive": row.drive,
        "promised": row.state,
        "within_s": row.within_s,
        "state": outcome.state,
        "state_s": None if outcome.state_s is None else round(outcome.state_s, 2),
        "reason": outcome.reason,
        "recovers": row.recovers,
        "recovered_s": None if outcome.recovered_s is None else round(outcome.recovered_s, 2),
        "moved_before_enable": outcome.moved_before_enable,
        "paused_s": round(outcome.paused_s, 2),
        "goal_distance_rad": round(max(seen.distance), 3),
        "goal_step_rad": round(max(seen.step), 4),
        "goal_speed_rad_s": round(max(seen.speed), 2),
        "goal_acceleration_rad_s2": round(max(seen.acceleration), 1),
        "watchdog_stops": seen.watchdog_stops,
        "ticks": outcome.ticks,
        "missed": outcome.missed,
    }


async def _break(scene: Scene, row: Row, outcome: Outcome) -> None:
    """Enter the fault, watch what the arm does until its state is reached and ``watch_s`` have passed."""
    begun = time.monotonic()
    async with row.fault(scene):
        await asyncio.sleep(max(0.0, row.watch_s - (time.monotonic() - begun)))
        deadline = begun + row.within_s + _LATE_S
        while not await _reached(scene, row.state, begun):
            if time.monotonic() > deadline:
                break
        outcome.state, outcome.state_s = await _state(scene, row.state, begun)
        if outcome.state == "moves on":
            outcome.paused_s = longest_pause(scene.rig.bench.goal_log(), begun)
        outcome.reason = scene.watch.reason


def longest_pause(log: GoalLog, begun: float) -> float:
    """The longest time, s, in which no goal at the motors changed, from ``begun`` (monotonic s) on."""
    if len(log.t_ns) < 2:
        return 0.0
    changed = np.abs(np.diff(log.goal, axis=0)).max(axis=1) > 0.5 * TICK_RAD
    at = log.t_ns[1:][changed]
    edges = np.concatenate([[begun * 1e9], at[at > begun * 1e9], [log.t_ns[-1]]])
    return float(np.diff(edges).max()) * 1e-9


async def _reached(scene: Scene, wanted: Arm, begun: float) -> bool:
    """Whether there is nothing more to wait for; takes a moment."""
    if wanted == "stands still":
        return not await scene.moves()
    await asyncio.sleep(POLL_S)
    return wanted not in ("hold", "fault") or scene.watch.first(wanted, begun) is not None


async def _refused(scene: Scene) -> bool:
    """A robot in fault is not driven before somebody has enabled it."""
    try:
        await scene.control.set_mode(scene.drive)
    except RobotCallError:
        return True
    return False


async def _state(scene: Scene, wanted: Arm, begun: float) -> tuple[str, float | None]:
    """(what the arm does, seconds after ``begun`` since when)."""
    moving = await scene.moves(STILL_S)
    mode = scene.watch.mode
    if mode != scene.drive:
        at = scene.watch.first(mode, begun)
        return mode, None if at is None else at - begun
    if moving:
        return "moves on", 0.0
    return "stands still", max(0.0, scene.watch.last_moved(scene.drive) - begun)


async def _recover(scene: Scene, row: Row, outcome: Outcome) -> None:
    """Wait for what comes back by itself; or see that nothing does, mend, enable, drive again."""
    begun = time.monotonic()
    if row.recovers in ("nothing stops", "by itself"):
        try:
            outcome.recovered_s = await scene.until_moving()
        except UsageError as error:
            outcome.reason = f"{outcome.reason}; {error}"
            await scene.begin()
        return
    await asyncio.sleep(_SURE_S)
    outcome.moved_before_enable = scene.watch.mode == scene.drive or await scene.moves(0.2)
    if row.state == "fault" and not await _refused(scene):
        outcome.moved_before_enable = True
    if row.mend is not None:
        async with row.mend(scene):
            pass
    begun = time.monotonic()
    await scene.begin(PATIENCE_S)
    outcome.recovered_s = time.monotonic() - begun
