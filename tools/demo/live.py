"""The arm in real time: the running robot service, driven over gRPC as anybody else would drive it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import numpy as np

from hal.bench.world import World
from hal.types import Vector
from runtime.remote.client import Control, RobotClient
from tools.errors import UsageError
from tools.lockstep import TASK
from tools.sim import SimRobot

EPISODE_S = 8.0
DEMONSTRATION_S = 15.0
_HOME_S = 2.2
_POLL_S = 0.1
_MEND_S = 1.0  # until the bus is linked again


@dataclass
class LiveEpisode:
    """One episode on the live arm."""

    id: str
    success: bool
    seconds: float
    end_ms: float
    flags: list[str]


@dataclass
class LiveRun:
    """What the live arm did, and how its loop kept time."""

    episodes: list[LiveEpisode] = field(default_factory=list)
    seen: list[tuple[str, int]] = field(default_factory=list)
    loop: dict[str, float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def versions(self) -> list[str]:
        """The bundles that drove, in order, without repetition in a row."""
        names = [version for version, _ in self.seen]
        return [v for i, v in enumerate(names) if i == 0 or names[i - 1] != v]

    def missed_over_swaps(self) -> int:
        """Ticks the loop missed from the look before each change of bundle to the third after it.

        ``seen`` holds (bundle, ticks missed since the service started), looked at ten times a second.
        """
        changes = [i for i in range(1, len(self.seen)) if self.seen[i][0] != self.seen[i - 1][0]]
        last = len(self.seen) - 1
        return sum(self.seen[min(i + 3, last)][1] - self.seen[i - 1][1] for i in changes)


async def demonstrations(sim: SimRobot, seeds: list[int], region: str) -> LiveRun:
    """The scripted demonstrator moves the leader; the robot follows and records."""
    run = LiveRun()
    async with sim.client() as robot, robot.control("demo") as control:
        await control.enable()
        for seed in seeds:
            await asyncio.to_thread(sim.bench.reset, seed, region)  # type: ignore[arg-type]
            await control.set_mode("teleop")
            began = time.monotonic()
            reply = await control.start_episode(TASK)
            await asyncio.to_thread(sim.bench.demonstrate, seed)
            while time.monotonic() - began < DEMONSTRATION_S:
                await asyncio.sleep(_POLL_S)
                if not (await asyncio.to_thread(sim.bench.task)).demonstrating:
                    break
            run.episodes.append(await _end(sim, control, reply.id, began))
        run.loop = await loop_figures(robot)
        await robot.stop("demonstrations are done")
    return run


async def policy(sim: SimRobot, first_seed: int, region: str, enough: Callable[[LiveRun], bool]) -> LiveRun:
    """The policy drives, a new scene for each episode, until ``enough`` says so after one."""
    run = LiveRun()
    async with sim.client() as robot, robot.control("demo") as control:
        await control.enable()
        seed = first_seed
        while not enough(run):
            await go_home(control)
            await asyncio.to_thread(sim.bench.reset, seed, region)  # type: ignore[arg-type]
            await control.set_mode("policy")
            run.episodes.append(await _policy_episode(sim, robot, control, run))
            await _hold(robot, control, run)
            seed += 1
        run.loop = await loop_figures(robot)
        await robot.stop("the live run is done")
    return run


async def _hold(robot: RobotClient, control: Control, run: LiveRun) -> None:
    """Hold; an arm in fault is enabled again, as the person beside it would, and its reason is kept."""
    state = await robot.state()
    if state.mode != "fault":
        await control.set_mode("hold")
        return
    run.faults.append(state.reason)
    await asyncio.sleep(_MEND_S)
    await control.enable()


async def _policy_episode(sim: SimRobot, robot: RobotClient, control: Control, run: LiveRun) -> LiveEpisode:
    began = time.monotonic()
    reply = await control.start_episode(TASK)
    while time.monotonic() - began < EPISODE_S + 0.3:  # past the limit, so that its monitor has spoken
        await asyncio.sleep(_POLL_S)
        state = await robot.state()
        run.seen.append((state.policy, int(state.loop.missed)))
        if (await asyncio.to_thread(sim.bench.task)).success:
            break
    return await _end(sim, control, reply.id, began)


async def _end(sim: SimRobot, control: Control, episode: str, began: float) -> LiveEpisode:
    success = (await asyncio.to_thread(sim.bench.task)).success
    seconds = time.monotonic() - began
    done = await control.end_episode("success" if success else "failure", "judged by the bench")
    return LiveEpisode(episode, success, seconds, done.end_ms, list(done.flags))


async def go_home(control: Control) -> None:
    """Move to the start pose by streamed goals: guarded and ramped like all motion."""
    await control.set_mode("teleop")
    await control.teleop(_home_goals())


async def _home_goals() -> AsyncIterator[tuple[Vector, int]]:
    goal = np.asarray(World.home, dtype=np.float64)
    until = time.monotonic() + _HOME_S
    while time.monotonic() < until:
        yield goal, time.monotonic_ns()
        await asyncio.sleep(1 / 30)


async def loop_figures(robot: RobotClient) -> dict[str, float]:
    """The control loop's own figures since the service started."""
    loop = (await robot.state()).loop
    return {name.name: float(getattr(loop, name.name)) for name in loop.DESCRIPTOR.fields}


def require_success(run: LiveRun, what: str) -> None:
    """Raise UsageError when none of the episodes succeeded: the bench itself is then at fault."""
    if not any(e.success for e in run.episodes):
        raise UsageError(f"{what} failed on the live bench; read up.log in the robot's folder")
