"""`ratchet replay`: the actions of a recorded episode, once more on the arm."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import click
import numpy as np

from episodes.reader import StreamData
from episodes.store import EpisodeStore
from hal.types import JOINTS, Vector
from protos.ratchet.v1 import robot_pb2 as pb
from runtime.remote.client import Control, RobotClient
from tools.console import say
from tools.emergency_keys import emergency_keys
from tools.errors import UsageError
from tools.finding import full_id
from tools.options import PATH
from tools.robot_door import Door, left_mode, robot_options, run_until_interrupted

_APPROACH_RAD_S = 0.5
_GOAL_S = 1.0 / 30.0
_LOOK_HZ = 10.0
_ENDED = "teleoperation stream ended"
_NAMES = tuple(f"{joint}.pos" for joint in JOINTS)


@click.command(
    epilog="\b\nExamples:\n  ratchet replay 20261121-0936 --dir out/sim\n"
    "  ratchet replay 20261121-093619-7c79ec03 --store episodes\n"
)
@click.argument("episode")
@click.option("--store", type=PATH, help="The episode store [with --dir: the bench's].")
@robot_options
def replay(door: Door, episode: str, store: Path | None) -> None:
    """Play the actions of EPISODE (the beginning of its id is enough) on the arm, then let it down.

    The arm first goes slowly from where it is to where the episode begins. What moves it is guarded like
    any motion. Ctrl-C ends it and lets the arm down. Space bar or e: emergency stop.
    """
    with EpisodeStore.open(store or door.paths.store, create=False, mode="r") as opened:
        name = full_id(opened, episode)
        t_ns, actions = recorded_actions(name, opened.read(name).streams.get("action"))
    run_until_interrupted(lambda interrupted: _replay(door, t_ns, actions, interrupted))


def recorded_actions(episode: str, stream: StreamData | None) -> tuple[Vector, Vector]:
    """Times (n,), s from the first action on, and actions (n, 6) rad.

    Raises UsageError for an episode of an arm with other joints or in another unit.
    """
    if stream is None or not len(stream):
        raise UsageError(f"episode {episode} has no actions")
    if tuple(stream.names) != _NAMES or stream.values.ndim != 2 or stream.values.shape[1] != len(_NAMES):
        theirs = ", ".join(stream.names) or f"{stream.values.shape[1:]} values without names"
        raise UsageError(f"episode {episode} was made by another robot: its actions are {theirs}")
    if stream.unit != "rad":
        raise UsageError(
            f"episode {episode} has actions in {stream.unit or 'an unknown unit'}, not rad; "
            "import it again with its unit"
        )
    if not np.isfinite(stream.values).all():
        raise UsageError(
            f"episode {episode} holds an action that is not finite; see `ratchet episodes verify`"
        )
    return (stream.t_ns - stream.t_ns[0]) / 1e9, stream.values.astype(np.float64)


def schedule(start: Vector, times_s: Vector, actions: Vector) -> tuple[Vector, Vector]:
    """When (n,) s and where (n, 6) rad: an even way from ``start`` to the first action, then the episode.

    Every recorded action keeps its distance in time from the first; where they lie more than a tick and
    a half apart, goals in between keep the arm from holding.
    """
    way = float(np.abs(actions[0] - start).max())
    steps = max(1, round(way / _APPROACH_RAD_S / _GOAL_S))
    shares = np.arange(1, steps + 1)[:, None] / steps
    when, where = [np.arange(steps) * _GOAL_S], [start + (actions[0] - start) * shares]
    begin_s = steps * _GOAL_S
    for i in range(len(times_s)):
        if i and (gap_s := times_s[i] - times_s[i - 1]) > 1.5 * _GOAL_S:
            between = np.arange(1, int(np.ceil(gap_s / _GOAL_S))) * _GOAL_S
            when.append(begin_s + times_s[i - 1] + between)
            where.append(actions[i - 1] + (actions[i] - actions[i - 1]) * (between / gap_s)[:, None])
        when.append(begin_s + times_s[i : i + 1])
        where.append(actions[i : i + 1])
    return np.concatenate(when), np.concatenate(where)


async def _replay(door: Door, times_s: Vector, actions: Vector, interrupted: asyncio.Event) -> None:
    async with door.connect() as robot, robot.control("ratchet replay") as control:
        await control.enable()
        try:
            state = await robot.state()
            await control.set_mode("teleop")
            when, where = schedule(np.array(state.goal or state.position), times_s, actions)
            with emergency_keys(door, robot) as keys:
                say(f"to where the episode begins, then {times_s[-1]:.1f} s of it; {keys}Ctrl-C lets it down")
                player = Player(when, where, interrupted)
                summary = await _play(robot, control, player)
            if player.over and not player.finished:
                state = await robot.state()
                raise left_mode("teleop", state.mode, state.reason)
            ended = "" if player.finished else " until it was interrupted"
            late = f", {player.skipped} skipped by a machine that was late" if player.skipped else ""
            say(f"replayed {summary.received} of {len(when)} goals{ended}{late}")
            if summary.refused:
                raise UsageError(f"{summary.refused} goals were refused; see `ratchet status` for the reason")
        finally:
            # Its own end leaves the arm on hold, like any stream's; a hold for another reason stays.
            state = await robot.state()
            if state.mode == "teleop" or (state.mode == "hold" and _ENDED in state.reason):
                await robot.stop("replay ended")


class Player:
    """Gives each goal at its own time, until interrupted or ``over``; what is missed is skipped."""

    def __init__(self, when: Vector, where: Vector, interrupted: asyncio.Event) -> None:
        self._when, self._where, self._interrupted = when, where, interrupted
        self.over = False
        """The arm has left teleoperation, whatever for."""
        self.finished = False
        self.skipped = 0

    async def goals(self) -> AsyncIterator[tuple[Vector, int]]:
        """The goals, each with the monotonic ns at which it was given."""
        began, last = time.monotonic(), len(self._when) - 1
        for i, (at_s, goal) in enumerate(zip(self._when, self._where, strict=True)):
            late_s = time.monotonic() - began - float(at_s)
            if late_s > _GOAL_S and i < last:
                self.skipped += 1
                continue
            await asyncio.sleep(max(0.0, -late_s))
            if self._interrupted.is_set() or self.over:
                return
            yield goal, time.monotonic_ns()
        self.finished = True


async def _play(robot: RobotClient, control: Control, player: Player) -> pb.TeleopSummary:
    """Stream the goals until their end, an interruption, or the arm leaves teleoperation."""
    watcher = asyncio.create_task(_watch(robot, player))
    try:
        return await control.teleop(player.goals())
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher


async def _watch(robot: RobotClient, player: Player) -> None:
    """Tell the player when the arm leaves teleoperation."""
    async with contextlib.aclosing(robot.telemetry(_LOOK_HZ)) as telemetry:
        async for sample in telemetry:
            if sample.state.mode != "teleop":
                player.over = True
                return
