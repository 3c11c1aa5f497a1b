"""One fault being done: who drives, what the arm does meanwhile, and what the judge saw."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np

from hal.errors import BenchError
from hal.types import Vector
from runtime.remote.client import Control, RobotCallError, RobotClient
from runtime.remote.errors import RemoteError
from tools.errors import UsageError
from tools.faults.rig import Rig

PATIENCE_S = 20.0
POLL_S = 0.03
STILL_S = 0.6
_TELEOP_RAD = 2e-3
_POLICY_RAD = 1e-6  # what noise in the pictures makes of an untrained policy's goals


class Watch:
    """Samples of the robot's state while something happens: times (monotonic s), modes, goals rad."""

    def __init__(self, robot: RobotClient) -> None:
        self._robot = robot
        self.times: list[float] = []
        self.modes: list[str] = []
        self.goals: list[tuple[float, ...]] = []
        self.reason = ""

    async def run(self) -> None:
        """Look until cancelled; a robot that does not answer is looked at again."""
        while True:
            with contextlib.suppress(RobotCallError):
                state = await self._robot.state()
                self.times.append(time.monotonic())
                self.modes.append(state.mode)
                self.goals.append(tuple(state.goal) or (0.0,) * 6)
                self.reason = state.reason
            await asyncio.sleep(POLL_S)

    @property
    def mode(self) -> str:
        return self.modes[-1] if self.modes else ""

    def first(self, mode: str, since_s: float) -> float | None:
        """When the robot was first in ``mode`` after ``since_s``."""
        return next(
            (t for t, m in zip(self.times, self.modes, strict=True) if t >= since_s and m == mode), None
        )

    def since(self, since_s: float) -> Vector:
        """Goals after ``since_s``, rad (n, 6)."""
        return np.array([g for t, g in zip(self.times, self.goals, strict=True) if t >= since_s]).reshape(
            -1, 6
        )

    def last_moved(self, drive: str) -> float:
        """When the goal last differed from the one it has now, monotonic s; 0 when it never did."""
        goals = self.since(0.0)
        if not len(goals):
            return 0.0
        far = np.abs(goals - goals[-1]).max(axis=1) > threshold(drive)
        return self.times[int(np.flatnonzero(far)[-1]) + 1] if far.any() else 0.0


def threshold(drive: str) -> float:
    """What counts as a motion of the goal, rad."""
    return _POLICY_RAD if drive == "policy" else _TELEOP_RAD


class Scene:
    """A rig that is being driven in mode ``drive`` ("teleop" or "policy") by somebody who holds its lease."""

    def __init__(self, rig: Rig, robot: RobotClient, control: Control, drive: str) -> None:
        self.rig, self.robot, self.control, self.drive = rig, robot, control, drive
        self.watch = Watch(robot)
        self.notes: list[str] = []

    async def moves(self, seconds: float = STILL_S) -> bool:
        """Whether the goals change while we look."""
        begun = time.monotonic()
        await asyncio.sleep(seconds)
        goals = self.watch.since(begun)
        return len(goals) > 1 and bool(np.ptp(goals, axis=0).max() > threshold(self.drive))

    async def until_moving(self, patience_s: float = PATIENCE_S) -> float:
        """Wait until it is driven in its mode; seconds that took. Raises UsageError when it never is."""
        begun = time.monotonic()
        while time.monotonic() - begun < patience_s:
            if self.watch.mode == self.drive and await self.moves(0.2):
                return time.monotonic() - begun
            await asyncio.sleep(POLL_S)
        raise UsageError(
            f"the arm does not move in {patience_s:g} s: mode {self.watch.mode} ({self.watch.reason})"
        )

    async def begin(self, patience_s: float = PATIENCE_S) -> None:
        """Explicitly enable the arm and drive it; tried until the robot is ready for it."""
        await self.enable(patience_s)
        await self.until_moving()

    async def enable(self, patience_s: float = PATIENCE_S) -> None:
        """Energise the arm and let it be driven in its mode; tried until the robot is ready for it."""
        deadline = time.monotonic() + patience_s
        while True:
            try:
                await self.control.enable()
                await self.control.set_mode(self.drive)
                return
            except RobotCallError as error:
                if time.monotonic() > deadline:
                    raise UsageError(f"the arm cannot be enabled: {error}") from error
                await asyncio.sleep(0.2)


@contextlib.asynccontextmanager
async def driving(rig: Rig, drive: str) -> AsyncIterator[Scene]:
    """Drive the rig's arm in mode ``drive``; in teleop the demonstrator keeps the leader moving.

    Leaving the block ends the drive; a robot that was killed meanwhile is left alone.
    """
    async with contextlib.AsyncExitStack() as stack:
        robot = await stack.enter_async_context(rig.client())
        control = await stack.enter_async_context(robot.control("fault table"))
        scene = Scene(rig, robot, control, drive)
        await stack.enter_async_context(_beside(scene.watch.run()))
        await scene.enable()
        if (
            drive == "teleop"
        ):  # not before: a new scene would put a released arm elsewhere while it is enabled
            await stack.enter_async_context(_beside(_demonstrate(rig)))
        await scene.until_moving()
        yield scene
        with contextlib.suppress(RemoteError):
            await control.set_mode("hold")


@contextlib.asynccontextmanager
async def _beside(coroutine: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(coroutine)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _demonstrate(rig: Rig) -> None:
    """One demonstration after the other."""
    seed, bench = 1, rig.bench
    try:
        while True:
            if not (await asyncio.to_thread(bench.task)).demonstrating:
                await asyncio.to_thread(bench.reset, seed)
                await asyncio.to_thread(bench.demonstrate, seed)
                seed += 1
            await asyncio.sleep(POLL_S)  # a leader that rests between two is a pause of the arm
    finally:
        with contextlib.suppress(BenchError):
            bench.stop_demonstration()


async def record(scene: Scene, seconds: float = 0.7) -> str:
    """Record and publish a short episode; its id."""
    started = await scene.control.start_episode("something")
    await asyncio.sleep(seconds)
    await scene.control.end_episode("success", "recorded")
    await until(lambda: started.id in scene.rig.digests(), "the episode is published")
    return str(started.id)


async def until(condition: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> float:
    """Wait until ``condition`` (which may block for a moment) holds; seconds that took. Raises UsageError."""
    begun = time.monotonic()
    while not await asyncio.to_thread(condition):
        if time.monotonic() - begun > patience_s:
            raise UsageError(f"not in {patience_s:g} s: {what}")
        await asyncio.sleep(POLL_S)
    return time.monotonic() - begun
