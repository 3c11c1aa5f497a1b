"""An in-memory robot for the tests of the remote doors: it keeps a mode and a list of what was asked."""

from __future__ import annotations

import asyncio
import time

import numpy as np

from episodes.spec import Outcome
from hal.types import NUM_JOINTS, JointState
from runtime.nouns import Flag, Vector
from runtime.remote.errors import BadRequestError, RefusedError
from runtime.remote.facade import (
    EpisodeOutcome,
    EpisodeResult,
    LoopFigures,
    Mode,
    RequestedMode,
    RobotSnapshot,
)


def joints(seq: int) -> JointState:
    """A plausible sample."""
    return JointState(
        seq=seq,
        t_ns=time.monotonic_ns(),
        position=np.linspace(-1.0, 1.0, NUM_JOINTS),
        velocity=np.zeros(NUM_JOINTS),
        effort=np.full(NUM_JOINTS, 0.1),
        temperature=np.full(NUM_JOINTS, 31.0),
        voltage=np.full(NUM_JOINTS, 5.0),
        hardware_error=np.zeros(NUM_JOINTS, np.uint8),
        moving=np.zeros(NUM_JOINTS, np.bool_),
        age_ns=np.zeros(NUM_JOINTS, np.int64),
    )


class MemoryFacade:
    """Implements RobotFacade. ``calls`` holds (name, argument, monotonic s); ``gate``, when set,
    holds up set_policy, set_mode and start_episode until it is opened."""

    def __init__(self) -> None:
        self.mode: Mode = "off"
        self.reason = ""
        self.episode = ""
        self.policy = "000000000000"
        self.ticks = 0
        self.calls: list[tuple[str, object, float]] = []
        self.gate: asyncio.Event | None = None
        self.changed = asyncio.Event()

    def names(self) -> list[str]:
        """What was asked, in order."""
        return [name for name, _, _ in self.calls]

    async def called(self, name: str, timeout_s: float = 10.0) -> float:
        """Wait until ``name`` was asked; returns when it was."""
        async with asyncio.timeout(timeout_s):
            while name not in self.names():
                self.changed.clear()
                await self.changed.wait()
        return next(at for asked, _, at in self.calls if asked == name)

    def _note(self, name: str, argument: object = None) -> None:
        self.calls.append((name, argument, time.monotonic()))
        self.changed.set()

    async def state(self) -> RobotSnapshot:
        self.ticks += 1
        return RobotSnapshot(
            robot="koch",
            mode=self.mode,
            reason=self.reason,
            tick=self.ticks,
            joints=joints(self.ticks),
            goal=np.zeros(NUM_JOINTS),
            episode=self.episode,
            policy=self.policy,
            loop=LoopFigures(ticks=self.ticks, period_ms_p50=33.3),
            flags=(Flag("stall", 1, 2, 1.5, {"joint": "gripper"}),),
        )

    async def enable(self) -> None:
        self._note("enable")
        if self.mode != "off":
            raise RefusedError(f"cannot enable in mode {self.mode}", "stop it first")
        self.mode = "ready"

    async def stop(self, reason: str) -> None:
        self.mode, self.reason = ("estop" if self.mode == "estop" else "off"), reason
        self._note("stop", reason)

    async def estop(self, reason: str) -> None:
        self.mode, self.reason = "estop", reason
        self._note("estop", reason)

    async def clear_estop(self) -> None:
        self._note("clear_estop")
        if self.mode != "estop":
            raise RefusedError("there is no emergency stop to clear", "nothing to do")
        self.mode = "off"

    async def hold(self, reason: str) -> None:
        if self.mode in ("teleop", "policy"):
            self.mode, self.reason = "hold", reason
        self._note("hold", reason)

    async def set_mode(self, mode: RequestedMode) -> None:
        self._note("set_mode", mode)
        if self.gate is not None:
            await self.gate.wait()
        if self.mode not in ("ready", "teleop", "policy", "hold"):
            raise RefusedError(f"cannot go to {mode} from {self.mode}", "enable first")
        self.mode = mode

    async def set_policy(self, bundle: str, backend: str) -> str:
        self._note("set_policy", bundle)
        if self.gate is not None:
            await self.gate.wait()
        if bundle == "missing":
            raise BadRequestError("no bundle at missing", "check the path")
        self.policy = bundle
        return bundle

    async def start_episode(self, task: str) -> EpisodeResult:
        self._note("start_episode", task)
        if self.episode:
            raise RefusedError(f"episode {self.episode} is running", "end it first")
        if self.gate is not None:
            await self.gate.wait()
        self.episode = f"ep{len(self.calls)}"
        return EpisodeResult(self.episode)

    async def end_episode(self, outcome: EpisodeOutcome, reason: str) -> EpisodeResult:
        self._note("end_episode", outcome)
        if not self.episode:
            raise RefusedError("no episode is running", "start one")
        ended, self.episode = self.episode, ""
        return EpisodeResult(ended, frames=12, end_ms=1.5, flags=("stall",))

    async def throw_away(self, episode: str) -> EpisodeResult:
        self._note("throw_away", episode)
        return EpisodeResult(episode)

    async def keep_last(self, task: str, outcome: Outcome) -> EpisodeResult:
        self._note("keep_last", task)
        return EpisodeResult("kept", frames=300)

    async def teleop_goal(self, position: Vector, age_ns: int) -> None:
        if self.mode != "teleop":
            raise RefusedError(f"mode is {self.mode}", "set the mode to teleop")
        self._note("teleop_goal", position.tolist())
