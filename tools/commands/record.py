"""`ratchet record`: episodes of a person who drives a running robot service."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator

import click

from hal.bench.control import BenchClient
from runtime.remote.client import Control, RobotClient
from tools.console import say, show_json
from tools.emergency_keys import emergency, emergency_keys
from tools.errors import UsageError
from tools.keyboard import Keyboard, keyboard
from tools.options import FiniteRange, json_flag
from tools.pedal import check_source, pedal
from tools.record_notes import STATE, SessionNote
from tools.record_panel import panel
from tools.recording import (
    ClockDirector,
    DemonstratorDirector,
    Director,
    Keep,
    KeyDirector,
    Outcome,
    keep_last,
    record_session,
)
from tools.rerun_live import live_view
from tools.robot_door import Door, leave, robot_options, run_until_interrupted

_TASK_LIMIT = 200  # what the robot takes

RECORD_EXAMPLES = """
\b
Keys: s success, f failure, → or n done, ← or r again, k keep the last seconds although nothing was
recorded, esc or q stop, space bar or e EMERGENCY STOP.
\b
Examples:
  ratchet record --task "put the cube in the zone" --episodes 50
  ratchet record --task test --episodes 3 --episode-seconds 10      # without a terminal
  ratchet record --dir out/sim --task test --episodes 5 --demonstrator
  mkfifo /tmp/pedal; ratchet record --task test --button /tmp/pedal # then: echo success > /tmp/pedal
"""


@click.command(epilog=RECORD_EXAMPLES)
@click.option(
    "--task",
    required=True,
    callback=lambda _, __, task: _one_line(task),
    help="What is done, in the words a policy is trained with.",
)
@click.option("--episodes", type=click.IntRange(1, 10_000), default=50, show_default=True)
@click.option("--episode-seconds", type=FiniteRange(0.5, 3600.0), help="End each episode by itself.")
@click.option("--reset-seconds", type=FiniteRange(0.0, 3600.0), default=10.0, show_default=True)
@click.option(
    "--outcome",
    type=click.Choice(["success", "failure", "unknown"]),
    default="success",
    show_default=True,
    help="Of an episode that ends without a word.",
)
@click.option("--demonstrator", is_flag=True, help="On a bench: its scripted demonstrator moves the leader.")
@click.option("--seed", type=click.IntRange(0), default=0, help="With --demonstrator: the first scene.")
@click.option("--button", metavar="FIFO|CMD", help="A pedal: a key's name a line, from a FIFO or a program.")
@click.option("--fresh", is_flag=True, help="Count from 0, although such a session was left unfinished.")
@click.option("--view", is_flag=True, help="Show cameras and joints in Rerun (needs rerun-sdk).")
@json_flag
@robot_options
def record(
    door: Door,
    task: str,
    episodes: int,
    episode_seconds: float | None,
    reset_seconds: float,
    outcome: Outcome,
    demonstrator: bool,
    seed: int,
    button: str | None,
    fresh: bool,
    view: bool,
    as_json: bool,
) -> None:
    """Record episodes while the leader arm drives the follower.

    Run again with the same task, it goes on where it was until so many episodes are kept.
    """
    check_source(button)
    kept: list[dict[str, str]] = []
    extra: list[dict[str, str]] = []  # of the last seconds; they do not count
    note = SessionNote(door.run_dir / "record.json" if door.run_dir else STATE, door.address, task)
    already = note.kept() if not fresh and note.kept() < episodes else 0
    if already:
        say(f"going on: {already} of {episodes} are kept (--fresh counts anew)")

    def count(episode: str, verdict: str) -> None:
        kept.append({"id": episode, "outcome": verdict})
        note.set((already + len(kept)) % episodes)  # complete: the next session begins at 0

    @contextlib.contextmanager
    def director(robot: RobotClient, keep: Keep) -> Iterator[tuple[Director, Keyboard | None]]:
        if demonstrator:
            with BenchClient(door.paths.bench / "bench.sock") as bench, emergency_keys(door, robot):
                yield DemonstratorDirector(bench, seed), None
        elif episode_seconds is not None:
            with emergency_keys(door, robot):
                yield ClockDirector(episode_seconds, reset_seconds, outcome), None
        elif sys.stdin.isatty():
            with keyboard(emergency(door, robot)) as keys:
                yield KeyDirector(keys, outcome, keep), keys
        elif button is not None:
            keys = Keyboard(emergency=emergency(door, robot))
            yield KeyDirector(keys, outcome, keep), keys
        else:
            raise UsageError("there is no terminal to read keys from; give --episode-seconds or --button")

    async def session(interrupted: asyncio.Event) -> None:
        async with door.connect() as robot, robot.control("ratchet record") as control:

            async def keep() -> None:
                await keep_last(control, task, outcome, lambda i, o: extra.append({"id": i, "outcome": o}))

            with director(robot, keep) as (chosen, keys), live_view(door, view):
                async with pedal(button, keys), panel(robot):
                    await drive(robot, control, chosen, interrupted)

    async def drive(
        robot: RobotClient, control: Control, chosen: Director, interrupted: asyncio.Event
    ) -> None:
        await control.enable()
        try:
            await control.set_mode("teleop")
            await record_session(robot, control, chosen, task, episodes, interrupted, count, already)
        finally:
            await leave(robot, control, "teleop", "recording ended")

    try:
        run_until_interrupted(session)
    finally:
        if as_json:
            show_json(kept + extra)
        else:
            more = f", and the last seconds {len(extra)} times" if extra else ""
            click.echo(f"{already + len(kept)} of {episodes} episodes kept{more}")


def _one_line(task: str) -> str:
    if not task.strip() or not task.isprintable() or len(task) > _TASK_LIMIT:
        raise click.BadParameter(f"a task is one line of 1 to {_TASK_LIMIT} characters, this has {len(task)}")
    return task
