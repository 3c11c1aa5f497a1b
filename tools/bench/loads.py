"""The four loads the control loop is timed under, and keeping a simulated robot at each of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from runtime.remote.client import Control, RobotClient
from runtime.remote.errors import RemoteError
from tools.bench.act_bundle import Served
from tools.children import Child
from tools.errors import UsageError
from tools.sim import SimRobot

TASK = "timing"
EPISODE_S = 20.0
_POLL_S = 0.25
_SETTLE_S = 1.0
_LEARNING_S = 120.0
_RESUMES = 100


@dataclass(frozen=True, slots=True)
class Load:
    """What the robot does: who moves the arm, and whether it records and learns."""

    name: str
    mode: Literal["teleop", "policy"]
    records: bool
    learns: bool
    words: str


LOADS = (
    Load("idle", "teleop", False, False, "the arm follows the leader, which a script demonstrates with"),
    Load("recording", "teleop", True, False, "the same, recorded in episodes of 20 s that are published"),
    Load("policy", "policy", True, False, "a served ACT drives, recorded"),
    Load("learning", "policy", True, True, "the same while the learner fine-tunes on what was recorded"),
)


@dataclass(slots=True)
class Span:
    """When a load was measured (monotonic ns), its episodes, and what took the arm out of its mode."""

    begin_ns: int = 0
    end_ns: int = 0
    episodes: int = 0
    interruptions: list[str] = field(default_factory=list)


class Driver:
    """Keeps the robot at a load. Raises RemoteError when it refuses, BenchError when the bench does."""

    def __init__(self, sim: SimRobot, robot: RobotClient, leases: contextlib.AsyncExitStack) -> None:
        self._sim, self._robot, self._leases = sim, robot, leases
        self._control: Control
        self._seed = 0

    async def take_control(self) -> None:
        """Acquire the robot; again when a stall of the whole machine has cost the lease."""
        self._control = await self._leases.enter_async_context(self._robot.control("bench"))

    async def run(self, load: Load, seconds: float, progress: Callable[[float], None]) -> Span:
        """Bring the robot to ``load``, keep it there for ``seconds``, and let it hold again."""
        span = Span()
        await self._control.enable()
        await self._control.set_mode(load.mode)
        await self._move(load)
        await asyncio.sleep(_SETTLE_S)
        recording_s = min(EPISODE_S, max(1.0, seconds / 2))
        began = episode = time.monotonic()
        span.begin_ns = time.monotonic_ns()
        if load.records:
            await self._control.start_episode(TASK)
        while (now := time.monotonic()) - began < seconds:
            progress(now - began)
            await asyncio.sleep(_POLL_S)
            try:
                await self._keep(load, span)
                if load.records and now - episode >= recording_s:
                    await self._end(load, span)
                    await self._control.start_episode(TASK)
                    episode = now
                await self._move(load)
            except RemoteError as error:
                self._interrupted(span, str(error))
                await self._regain(load)
        span.end_ns = time.monotonic_ns()
        if load.records:
            await self._end(load, span)
        await asyncio.to_thread(self._sim.bench.stop_demonstration)
        await self._control.set_mode("hold")
        return span

    async def _keep(self, load: Load, span: Span) -> None:
        """Back to the load's mode when something stopped the arm; that is counted and told."""
        state = await self._robot.state()
        if state.mode == load.mode:
            return
        self._interrupted(span, f"{state.mode}: {state.reason}")
        await self._control.enable()
        await self._control.set_mode(load.mode)

    def _interrupted(self, span: Span, why: str) -> None:
        span.interruptions.append(why)
        if len(span.interruptions) > _RESUMES:
            raise UsageError(f"the arm does not stay at its load: {why}; read {self._sim.log}")

    async def _regain(self, load: Load) -> None:
        """After a call was refused: control of the robot, its mode and its recording, as they should be."""
        with contextlib.suppress(RemoteError):  # it may be ours still
            await self.take_control()
        await self._control.enable()
        await self._control.set_mode(load.mode)
        if load.records and not (await self._robot.state()).episode:
            await self._control.start_episode(TASK)

    async def _move(self, load: Load) -> None:
        """The next demonstration when the last one is over."""
        if load.mode != "teleop" or (await asyncio.to_thread(self._sim.bench.task)).demonstrating:
            return
        self._seed += 1
        await asyncio.to_thread(self._sim.bench.reset, self._seed)
        await asyncio.to_thread(self._sim.bench.demonstrate, self._seed)

    async def _end(self, load: Load, span: Span) -> None:
        span.episodes += 1
        await self._control.end_episode("success" if load.mode == "teleop" else "unknown", "timing")


@contextlib.contextmanager
def learner(sim: SimRobot, served: Served) -> Iterator[Child]:
    """The learner fine-tuning beside the robot. Raises UsageError when it cannot begin."""
    log = sim.paths.run_dir / "learner.log"
    log.unlink(missing_ok=True)
    arguments = ["tools.bench.fine_tuning", "--store", str(sim.store_path)]
    arguments += ["--bundle", str(served.bundle), "--trust", str(served.trust)]
    child = Child("learner", arguments, log)
    try:
        child.wait_until(lambda: "fine_tuning.begin" in log.read_text(), _LEARNING_S)
        yield child
    finally:
        child.stop()


def learner_steps(log: Path) -> int:
    """Training steps a learner has reported in its log."""
    return log.read_text(errors="replace").count(" step ")
