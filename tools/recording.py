"""A recording session: one episode after the other, ended by a key, by time, or by the demonstrator."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from hal.bench.control import BenchClient
from runtime.remote.client import Control, RobotCallError, RobotClient
from runtime.remote.errors import RemoteError
from tools.console import say
from tools.errors import UsageError
from tools.keyboard import Key, Keyboard
from tools.robot_door import left_mode

T = TypeVar("T")
Outcome = Literal["success", "failure", "unknown", "discard"]

Ready = Literal["begin", "redo", "stop"]
Keep = Callable[[], Coroutine[Any, Any, None]]

_POLL_S = 0.1
_SETTLE_S = 0.5  # kept after the demonstrator is done, so that a policy also learns to stay
_DEMONSTRATION_LIMIT_S = 20.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """How an episode ended; ``more`` False ends the session after it."""

    outcome: Outcome
    reason: str
    more: bool = True


class Director(Protocol):
    """Decides when episodes begin and end."""

    async def prepare(self, number: int) -> Ready:
        """Make the scene ready for episode ``number`` (from 0); "redo" throws the one before it away."""

    async def begun(self, number: int) -> None:
        """Recording has begun."""

    async def verdict(self) -> Verdict:
        """Wait until the episode is over."""


class KeyDirector:
    """A person at the keyboard, with LeRobot's keys."""

    def __init__(self, keys: Keyboard, outcome: Outcome, keep: Keep) -> None:
        """``keep`` keeps the last seconds; it is called between episodes."""
        self._keys = keys
        self._outcome = outcome
        self._keep = keep

    async def prepare(self, number: int) -> Ready:
        say(
            f"episode {number + 1}: set the scene, then → or n to record, ← or r to record the last one "
            "again, k to keep the last seconds, esc or q to stop"
        )
        self._keys.forget()
        ready: dict[Key, Ready] = {"next": "begin", "redo": "redo", "stop": "stop"}
        while (key := await self._keys.next_key()) not in ready:
            if key == "keep":
                await self._keep()
            else:
                say("a kept episode never changes; ← or r throws the last one away to record it again")
        return ready[key]

    async def begun(self, number: int) -> None:
        say(
            "recording; s success, f failure, → or n done, ← or r again, esc or q keep and stop, space E-STOP"
        )
        self._keys.forget()

    async def verdict(self) -> Verdict:
        verdicts: dict[Key, Verdict] = {
            "next": Verdict(self._outcome, "ended by the operator"),
            "success": Verdict("success", "ended by the operator"),
            "failure": Verdict("failure", "ended by the operator"),
            "redo": Verdict("discard", "recorded again"),
            "stop": Verdict("unknown", "the session was stopped", more=False),
        }
        while (key := await self._keys.next_key()) not in verdicts:
            say("it is being recorded already")
        return verdicts[key]


class ClockDirector:
    """Nobody at the keyboard: episodes of a fixed length with a pause between them."""

    def __init__(self, episode_s: float, reset_s: float, outcome: Outcome) -> None:
        self._episode_s = episode_s
        self._reset_s = reset_s
        self._outcome = outcome

    async def prepare(self, number: int) -> Ready:
        if number and self._reset_s:
            say(f"{self._reset_s:g} s to set the scene")
            await asyncio.sleep(self._reset_s)
        return "begin"

    async def begun(self, number: int) -> None:
        say(f"recording episode {number + 1} for {self._episode_s:g} s")

    async def verdict(self) -> Verdict:
        await asyncio.sleep(self._episode_s)
        return Verdict(self._outcome, "time is up")


class DemonstratorDirector:
    """The bench's scripted demonstrator; a new scene for each episode, seeds from ``seed`` on."""

    def __init__(self, bench: BenchClient, seed: int) -> None:
        self._bench = bench
        self._seed = seed

    async def prepare(self, number: int) -> Ready:
        await asyncio.to_thread(self._bench.reset, self._seed + number)
        return "begin"

    async def begun(self, number: int) -> None:
        say(f"recording episode {number + 1}: scene {self._seed + number}")
        await asyncio.to_thread(self._bench.demonstrate, self._seed + number)

    async def verdict(self) -> Verdict:
        deadline = time.monotonic() + _DEMONSTRATION_LIMIT_S
        while time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)
            if not (await asyncio.to_thread(self._bench.task)).demonstrating:
                break
        await asyncio.sleep(_SETTLE_S)
        success = (await asyncio.to_thread(self._bench.task)).success
        return Verdict("success" if success else "failure", "judged by the bench")


async def record_session(
    robot: RobotClient,
    control: Control,
    director: Director,
    task: str,
    episodes: int,
    interrupted: asyncio.Event,
    kept: Callable[[str, str], None],
    already: int = 0,
    undone: Callable[[str], None] = lambda _: None,
) -> int:
    """Record until ``episodes`` are kept, the director stops, or ``interrupted``; how many were kept.

    ``already`` of them are there from before. The arm must be in mode teleop. ``kept`` is called with each
    episode's id and outcome, ``undone`` with the id of one that is thrown away after all. An interrupted
    episode is kept with outcome unknown. Raises RobotCallError,
    LeaseLostError, and UsageError when the arm or the recording stops by itself (what there is of the
    episode is then kept).
    """
    count, last = already, ""
    while count < episodes and not interrupted.is_set():
        ready = await _unless(interrupted, director.prepare(count))
        if ready is None or ready == "stop":
            break
        if ready == "redo":
            if await _throw_away(control, last):
                undone(last)
                count -= 1
            last = ""
            continue
        await control.start_episode(task)
        try:
            await director.begun(count)
            verdict = await _watched(robot, director, interrupted)
        except BaseException:
            with contextlib.suppress(RemoteError):
                reply = await control.end_episode("failure", "the arm or its operator stopped")
                kept(reply.id, "failure")
            raise
        reply = await control.end_episode(verdict.outcome, verdict.reason)
        if verdict.outcome != "discard":
            count += 1
            last = reply.id
            kept(last, verdict.outcome)
            say(f"kept {reply.id}: {reply.frames} ticks, {verdict.outcome}, ended in {reply.end_ms:.1f} ms")
        if not verdict.more:
            break
    return count


async def _throw_away(control: Control, episode: str) -> bool:
    """Whether the episode that was kept last is gone; what stands in the way is said."""
    if not episode:
        say("there is no last episode of this session to record again")
        return False
    try:
        await control.throw_away(episode)
    except RobotCallError as error:
        say(str(error))
        return False
    say(f"threw {episode} away; it is recorded again")
    return True


async def keep_last(control: Control, task: str, outcome: Outcome, kept: Callable[[str, str], None]) -> None:
    """Make an episode of the last seconds; a refusal is said, and the session goes on."""
    try:
        reply = await control.keep_last(task, outcome)
    except RobotCallError as error:
        say(str(error))
        return
    kept(reply.id, outcome)
    say(f"kept {reply.id}: the last {reply.frames} ticks, {outcome}")


async def _watched(robot: RobotClient, director: Director, interrupted: asyncio.Event) -> Verdict:
    """The director's verdict; raises UsageError when the arm leaves teleoperation first."""
    verdict = asyncio.create_task(_unless(interrupted, director.verdict()))
    try:
        while not verdict.done():
            state = await robot.state()
            if state.mode != "teleop":
                raise left_mode("teleop", state.mode, state.reason)
            if not state.episode:  # the disk, most likely; the operator must not act on for nobody
                raise UsageError(f"recording stopped: {state.reason}")
            await asyncio.wait([verdict], timeout=_POLL_S)
        return verdict.result() or Verdict("unknown", "the session was interrupted", more=False)
    finally:
        verdict.cancel()


async def _unless(interrupted: asyncio.Event, coroutine: Coroutine[Any, Any, T]) -> T | None:
    """The coroutine's result, or None when ``interrupted`` comes first."""
    task = asyncio.create_task(coroutine)
    waiter = asyncio.create_task(interrupted.wait())
    try:
        await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        waiter.cancel()
        await asyncio.gather(task, waiter, return_exceptions=True)
