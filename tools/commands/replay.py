"""`ratchet replay`: the actions of a recorded episode, once more on the arm."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import click
import numpy as np

from episodes.store import EpisodeStore
from hal.types import NUM_JOINTS, Vector
from tools.console import say
from tools.errors import UsageError
from tools.finding import full_id
from tools.options import PATH
from tools.robot_door import Door, robot_options, run_until_interrupted

_APPROACH_RAD_S = 0.5
_GOAL_HZ = 30.0
_ENDED = "teleoperation stream ended"


@click.command(
    epilog="\b\nExamples:\n  ratchet replay 20261121-0936 --dir out/sim\n"
    "  ratchet replay 20261121-093619-7c79ec03 --store episodes\n"
)
@click.argument("episode")
@click.option("--store", type=PATH, help="The episode store [with --dir: the bench's].")
@robot_options
def replay(door: Door, episode: str, store: Path | None) -> None:
    """Play the actions of EPISODE (the beginning of its id is enough) on the arm, then let it down.

    The arm first goes slowly to where the episode begins. What moves it is guarded like any motion.
    """
    t_ns, actions = _actions(store or door.paths.store, episode)
    run_until_interrupted(lambda interrupted: _replay(door, t_ns, actions, interrupted))


def _actions(root: Path, given: str) -> tuple[Vector, Vector]:
    """Times (n,) ns from the first action on, and actions (n, 6) rad."""
    with EpisodeStore.open(root, create=False, mode="r") as opened:
        name = full_id(opened, given)
        stream = opened.read(name).streams.get("action")
    if (
        stream is None
        or stream.values.ndim != 2
        or stream.values.shape[1] != NUM_JOINTS
        or not len(stream.t_ns)
    ):
        raise UsageError(
            f"episode {name} has no actions of {NUM_JOINTS} joints; it was made by another robot"
        )
    if not np.isfinite(stream.values).all():
        raise UsageError(f"episode {name} holds an action that is not finite; see `ratchet episodes verify`")
    return stream.t_ns - stream.t_ns[0], stream.values.astype(np.float64)


async def _replay(door: Door, t_ns: Vector, actions: Vector, interrupted: asyncio.Event) -> None:
    async with door.connect() as robot, robot.control("ratchet replay") as control:
        await control.enable()
        try:
            state = await robot.state()
            await control.set_mode("teleop")
            start = np.array(state.goal or state.position)
            summary = await control.teleop(_goals(start, t_ns, actions, interrupted))
            say(f"replayed {summary.received} goals, {summary.refused} came too late")
            if summary.refused:
                raise UsageError(f"{summary.refused} goals were refused; see `ratchet status` for the reason")
        finally:
            # Its own end leaves the arm on hold, like any stream's; a hold for another reason stays.
            state = await robot.state()
            if state.mode == "teleop" or (state.mode == "hold" and _ENDED in state.reason):
                await robot.stop("replay ended")


async def _goals(
    start: Vector, t_ns: Vector, actions: Vector, interrupted: asyncio.Event
) -> AsyncIterator[tuple[Vector, int]]:
    """First an even approach to where the actions begin, then each action at its own time."""
    way = float(np.abs(actions[0] - start).max())
    steps = max(1, round(way / _APPROACH_RAD_S * _GOAL_HZ))
    for step in range(1, steps + 1):
        if interrupted.is_set():
            return
        yield start + (actions[0] - start) * (step / steps), time.monotonic_ns()
        await asyncio.sleep(1.0 / _GOAL_HZ)
    began_ns = time.monotonic_ns()
    for at_ns, action in zip(t_ns, actions, strict=True):
        await asyncio.sleep(max(0.0, (began_ns + int(at_ns) - time.monotonic_ns()) / 1e9))
        if interrupted.is_set():
            return
        yield action, time.monotonic_ns()
