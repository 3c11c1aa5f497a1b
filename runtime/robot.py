"""The robot as the remote doors drive it: one facade over loop, bus, policy server and recorder."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

from episodes.spec import Kind
from hal.types import Vector
from runtime.bus_handle import BusHandle
from runtime.errors import BusProcessError
from runtime.loop import ControlLoop
from runtime.policy_client import PolicyClient
from runtime.policy_types import PolicyClientError
from runtime.recorder import EpisodeRecorder
from runtime.remote.errors import RefusedError, UnavailableError
from runtime.remote.facade import EpisodeOutcome, EpisodeResult, RequestedMode, RobotSnapshot
from runtime.supervisor import Event, State, accepts

log = logging.getLogger(__name__)

_MODE_EVENTS: Mapping[RequestedMode, Event] = {
    "teleop": Event.TELEOP,
    "policy": Event.POLICY,
    "hold": Event.HOLD,
}


class Robot:
    """Implements ``runtime.remote.facade.RobotFacade``. One per process; used on its event loop only."""

    def __init__(
        self,
        name: str,
        loop: ControlLoop,
        follower: BusHandle,
        policy: PolicyClient,
        recorder: EpisodeRecorder,
    ) -> None:
        self._name = name
        self._loop = loop
        self._follower = follower
        self._policy = policy
        self._recorder = recorder
        self._episode_ticks = 0

    async def state(self) -> RobotSnapshot:
        loop, sample = self._loop, self._loop.sample
        return RobotSnapshot(
            robot=self._name,
            mode=loop.state.value,
            reason=loop.reason if not loop.recorder_error else f"{loop.reason}; {loop.recorder_error}",
            tick=loop.ticks,
            joints=None if sample is None else sample.joints,
            goal=None if sample is None else sample.goal,
            episode=self._recorder.running or "",
            policy=loop.policy_version,
            loop=loop.stats.figures(sample.cycles if sample else 0, sample.lost if sample else 0),
            flags=tuple(loop.flags),
        )

    async def enable(self) -> None:
        """off → ready; also clears a fault first when there is one, since a person asks for it."""
        if self._loop.state is State.FAULT:
            await self._ask(self._follower.clear_fault)
            self._loop.handle(Event.CLEAR_FAULT)
        if self._loop.state is State.HOLD:
            await self._ask(self._follower.acknowledge)
            self._loop.handle(Event.RESUME)
            return
        if self._loop.state.energised:
            return
        self._require(Event.ENABLE)
        await self._ask(self._follower.enable)
        await self._await_torque(True)
        self._loop.handle(Event.ENABLE, "enabled")

    async def stop(self, reason: str) -> None:
        """Nothing moves from here on; the bus process lowers the arm and releases it."""
        self._loop.handle(Event.DISABLE, reason)
        await self._ask(self._follower.disable)

    async def estop(self, reason: str) -> None:
        """The flag is raised before anything is awaited."""
        self._follower.estop()
        self._loop.handle(Event.ESTOP, reason)

    async def clear_estop(self) -> None:
        self._require(Event.CLEAR_ESTOP)
        await self._ask(self._follower.clear_estop)
        await self._await_clear()
        self._loop.handle(Event.CLEAR_ESTOP, "e-stop cleared")

    async def hold(self, reason: str) -> None:
        if self._loop.state.moving:
            self._loop.handle(Event.HOLD, reason)
            await self._ask(self._follower.hold)

    async def set_mode(self, mode: RequestedMode) -> None:
        if self._loop.state.value == mode:
            return
        event = _MODE_EVENTS[mode]
        if self._loop.state is State.HOLD and event is not Event.HOLD:
            await self._ask(self._follower.acknowledge)
            self._loop.handle(Event.RESUME)
        self._require(event)
        if event is Event.POLICY:
            await self.calibrate_monitors()
        self._loop.handle(event, f"{mode} asked for")
        if event is Event.HOLD:
            await self._ask(self._follower.hold)

    async def set_policy(self, bundle: str, backend: str) -> str:
        try:
            known = {slot.version for slot in (await self._policy.status()).slots}
            if bundle in known:
                version = (await self._policy.swap(bundle)).version
            else:
                version = (await self._policy.load(bundle, backend, activate=True)).version
        except PolicyClientError as error:
            raise UnavailableError(str(error)) from error
        await self.calibrate_monitors()
        return version

    async def start_episode(self, task: str) -> EpisodeResult:
        if self._recorder.running is not None:
            raise RefusedError(f"episode {self._recorder.running} is running", "end it first")
        kind: Kind = "rollout" if self._loop.state is State.POLICY else "demo"
        provenance = {"policy": self._loop.policy_version} if kind == "rollout" else {}
        episode = self._recorder.start(task, kind, provenance)
        self._loop.recorder_error = ""
        self._loop.begin_episode()
        self._episode_ticks = self._loop.ticks
        return EpisodeResult(episode)

    async def end_episode(self, outcome: EpisodeOutcome, reason: str) -> EpisodeResult:
        sample = self._loop.sample
        if self._recorder.running is None or sample is None:
            detail = self._loop.recorder_error or "none was started"
            raise RefusedError(f"no episode is running: {detail}")
        began = time.monotonic()
        flags = self._loop.finish_episode()
        for flag in flags:
            self._recorder.flag(flag)
        ref = self._recorder.end(outcome, reason, sample.goal)
        assert ref is not None
        kinds = tuple(sorted({flag.kind for flag in flags}))
        return EpisodeResult(
            ref.id, self._loop.ticks - self._episode_ticks, (time.monotonic() - began) * 1e3, kinds
        )

    async def teleop_goal(self, position: Vector, age_ns: int) -> None:
        if self._loop.state is not State.TELEOP:
            raise RefusedError(f"the robot is in mode {self._loop.state.value}", "set mode teleop first")
        self._loop.remote_goal(position, age_ns)

    async def calibrate_monitors(self) -> None:
        """Give the monitors the thresholds that belong to the weights that serve now."""
        try:
            active = (await self._policy.status(manifests=True)).active
        except PolicyClientError as error:
            raise UnavailableError(str(error), "start a policy server with `ratchet serve`") from error
        if active is None:
            raise UnavailableError("the policy server has no bundle", "load one with `ratchet model promote`")
        self._loop.recalibrate((active.manifest or {}).get("monitors"))
        self._loop.policy_version = active.version

    # --- helpers ---------------------------------------------------------------------------------

    def _require(self, event: Event) -> None:
        if not accepts(self._loop.state, event):
            raise RefusedError(
                f"{event.value} is not possible in mode {self._loop.state.value} ({self._loop.reason})",
                _way_out(self._loop.state),
            )

    async def _ask(self, request: Any) -> None:
        """A request to the bus process, off the event loop; its refusal is the caller's."""
        try:
            await asyncio.to_thread(request)
        except BusProcessError as error:
            raise UnavailableError(str(error)) from error

    async def _await_torque(self, on: bool, timeout_s: float = 1.0) -> None:
        """The bus has granted it; wait until a sample says so, or the loop would see a released arm."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            sample = self._follower.latest()
            if sample is not None and sample.torque is on:
                return
            await asyncio.sleep(0.005)
        raise UnavailableError("the motors did not take torque within a second", "see `ratchet doctor`")

    async def _await_clear(self, timeout_s: float = 1.0) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            sample = self._follower.latest()
            if sample is not None and not sample.estopped:
                return
            await asyncio.sleep(0.005)
        raise UnavailableError("the bus process still reports the e-stop", "clear it again")


def _way_out(state: State) -> str:
    ways = {
        State.OFF: "enable it first",
        State.FAULT: "mend the cause, then enable it",
        State.ESTOP: "make sure the arm is safe, then clear the e-stop",
    }
    return ways.get(state, "stop it first")
