"""`ratchet record`: episodes of a person who drives a running robot service."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import click
import grpc

from hal.bench.control import BenchClient
from runtime.remote.client import Control, RobotCallError, RobotClient
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
_GHOST_S = 3.0  # a lease lives for 2 s at most after its holder's last word
_GHOST_POLL_S = 0.1

RECORD_EXAMPLES = """
\b
Keys: s success, f failure, → or n done, ← or r again (also in the pause after it), k keep the last
seconds although nothing was recorded, esc or q stop, space bar or e EMERGENCY STOP.
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
    session = _Session(
        door, task, episodes, episode_seconds, reset_seconds, outcome, demonstrator, seed, button, view
    )
    session.resume(fresh)
    try:
        run_until_interrupted(session.run)
    finally:
        session.report(as_json)


@dataclass(slots=True)
class _Session:
    """One run of the command: what was asked for, and what is kept so far."""

    door: Door
    task: str
    episodes: int
    episode_seconds: float | None
    reset_seconds: float
    outcome: Outcome
    demonstrator: bool
    seed: int
    button: str | None
    view: bool
    already: int = 0
    kept: list[dict[str, str]] = field(default_factory=list)
    extra: list[dict[str, str]] = field(default_factory=list)
    """Of the last seconds; they do not count."""

    @property
    def _note(self) -> SessionNote:
        run_dir = self.door.run_dir
        return SessionNote(run_dir / "record.json" if run_dir else STATE, self.door.address, self.task)

    def resume(self, fresh: bool) -> None:
        """Go on counting where an unfinished session of this task was, unless ``fresh``."""
        before = self._note.kept()
        self.already = before if not fresh and before < self.episodes else 0
        if self.already:
            say(f"going on: {self.already} of {self.episodes} are kept (--fresh counts anew)")

    async def run(self, interrupted: asyncio.Event) -> None:
        """Take control, record, and leave the arm as somebody else can take it."""
        async with self.door.connect() as robot, contextlib.AsyncExitStack() as stack:
            control = await _take_control(robot, stack)

            async def keep() -> None:
                await keep_last(control, self.task, self.outcome, self._keep_extra)

            with self._director(robot, keep) as (director, keys), live_view(self.door, self.view):
                async with pedal(self.button, keys), panel(robot):
                    await self._drive(robot, control, director, interrupted)

    def report(self, as_json: bool) -> None:
        """What was kept, on stdout."""
        if as_json:
            show_json(self.kept + self.extra)
            return
        more = f", and the last seconds {len(self.extra)} times" if self.extra else ""
        click.echo(f"{self.already + len(self.kept)} of {self.episodes} episodes kept{more}")

    async def _drive(
        self, robot: RobotClient, control: Control, director: Director, interrupted: asyncio.Event
    ) -> None:
        await control.enable()
        try:
            await control.set_mode("teleop")
            await record_session(
                robot,
                control,
                director,
                self.task,
                self.episodes,
                interrupted,
                self._count,
                self.already,
                self._uncount,
            )
        finally:
            await leave(robot, control, "teleop", "recording ended")

    @contextlib.contextmanager
    def _director(self, robot: RobotClient, keep: Keep) -> Iterator[tuple[Director, Keyboard | None]]:
        """Who says when an episode begins and ends. Raises UsageError when nobody can."""
        if self.demonstrator:
            with BenchClient(self.door.paths.bench / "bench.sock") as bench, emergency_keys(self.door, robot):
                yield DemonstratorDirector(bench, self.seed), None
        elif self.episode_seconds is not None:
            with emergency_keys(self.door, robot):
                yield ClockDirector(self.episode_seconds, self.reset_seconds, self.outcome), None
        elif sys.stdin.isatty():
            with keyboard(emergency(self.door, robot)) as keys:
                yield KeyDirector(keys, self.outcome, keep), keys
        elif self.button is not None:
            keys = Keyboard(emergency=emergency(self.door, robot))
            yield KeyDirector(keys, self.outcome, keep), keys
        else:
            raise UsageError("there is no terminal to read keys from; give --episode-seconds or --button")

    def _count(self, episode: str, verdict: str) -> None:
        self.kept.append({"id": episode, "outcome": verdict})
        # Complete: the next session begins at 0.
        self._note.set((self.already + len(self.kept)) % self.episodes)

    def _uncount(self, episode: str) -> None:
        self.kept = [entry for entry in self.kept if entry["id"] != episode]
        self._note.set(self.already + len(self.kept))

    def _keep_extra(self, episode: str, verdict: str) -> None:
        self.extra.append({"id": episode, "outcome": verdict})


async def _take_control(robot: RobotClient, stack: contextlib.AsyncExitStack) -> Control:
    """Control for as long as ``stack`` lasts; that of a session which died a moment ago runs out first."""
    deadline = time.monotonic() + _GHOST_S
    while True:
        try:
            return await stack.enter_async_context(robot.control("ratchet record"))
        except RobotCallError as error:
            if error.status is not grpc.StatusCode.ABORTED or time.monotonic() > deadline:
                raise
        await asyncio.sleep(_GHOST_POLL_S)


def _one_line(task: str) -> str:
    if not task.strip() or not task.isprintable() or len(task) > _TASK_LIMIT:
        raise click.BadParameter(f"a task is one line of 1 to {_TASK_LIMIT} characters, this has {len(task)}")
    return task
