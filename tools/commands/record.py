"""`ratchet record`: episodes of a person who drives a running robot service."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator

import click

from hal.bench.control import BenchClient
from runtime.remote.client import RobotClient
from tools.console import show_json
from tools.emergency_keys import emergency, emergency_keys
from tools.errors import UsageError
from tools.keyboard import keyboard
from tools.options import json_flag
from tools.recording import (
    ClockDirector,
    DemonstratorDirector,
    Director,
    KeyDirector,
    Outcome,
    record_session,
)
from tools.robot_door import Door, leave, robot_options, run_until_interrupted

RECORD_EXAMPLES = """
\b
Keys: s success, f failure, → or n done, ← or r again, esc or q stop, space bar or e EMERGENCY STOP.
\b
Examples:
  ratchet record --task "put the cube in the zone" --episodes 50
  ratchet record --task test --episodes 3 --episode-seconds 10      # without a terminal
  ratchet record --dir out/sim --task test --episodes 5 --demonstrator
"""


@click.command(epilog=RECORD_EXAMPLES)
@click.option("--task", required=True, help="What is done, in the words a policy is trained with.")
@click.option("--episodes", type=click.IntRange(1, 10_000), default=50, show_default=True)
@click.option("--episode-seconds", type=click.FloatRange(0.5, 3600.0), help="End each episode by itself.")
@click.option("--reset-seconds", type=click.FloatRange(0.0, 3600.0), default=10.0, show_default=True)
@click.option(
    "--outcome",
    type=click.Choice(["success", "failure", "unknown"]),
    default="success",
    show_default=True,
    help="Of an episode that ends without a word.",
)
@click.option("--demonstrator", is_flag=True, help="On a bench: its scripted demonstrator moves the leader.")
@click.option("--seed", type=click.IntRange(0), default=0, help="With --demonstrator: the first scene.")
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
    as_json: bool,
) -> None:
    """Record episodes while the leader arm drives the follower."""
    kept: list[dict[str, str]] = []

    @contextlib.contextmanager
    def director(robot: RobotClient) -> Iterator[Director]:
        if demonstrator:
            with BenchClient(door.paths.bench / "bench.sock") as bench, emergency_keys(door, robot):
                yield DemonstratorDirector(bench, seed)
        elif episode_seconds is not None:
            with emergency_keys(door, robot):
                yield ClockDirector(episode_seconds, reset_seconds, outcome)
        elif sys.stdin.isatty():
            with keyboard(emergency(door, robot)) as keys:
                yield KeyDirector(keys, outcome)
        else:
            raise UsageError("there is no terminal to read keys from; give --episode-seconds")

    async def session(interrupted: asyncio.Event) -> None:
        async with door.connect() as robot:
            with director(robot) as chosen:
                await drive(robot, chosen, interrupted)

    async def drive(robot: RobotClient, chosen: Director, interrupted: asyncio.Event) -> None:
        async with robot.control("ratchet record") as control:
            await control.enable()
            try:
                await control.set_mode("teleop")
                await record_session(
                    robot,
                    control,
                    chosen,
                    task,
                    episodes,
                    interrupted,
                    lambda episode, verdict: kept.append({"id": episode, "outcome": verdict}),
                )
            finally:
                await leave(robot, control, "teleop", "recording ended")

    try:
        run_until_interrupted(session)
    finally:
        if as_json:
            show_json(kept)
        else:
            click.echo(f"{len(kept)} of {episodes} episodes kept")
