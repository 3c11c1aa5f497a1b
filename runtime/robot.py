"""The robot as the remote doors drive it: one facade over loop, bus, policy server and recorder."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from episodes.errors import StoreError
from episodes.spec import Kind, Outcome
from episodes.writer import EpisodeRef
from hal.types import Vector
from runtime.bus_handle import BusHandle, BusSample
from runtime.bus_records import Fault
from runtime.errors import BusProcessError
from runtime.loop import ControlLoop
from runtime.monitors.thresholds import ThresholdError
from runtime.outcomes import Drive, Outcomes
from runtime.policy_switch import PolicySource
from runtime.policy_types import PolicyClientError, SlotStatus
from runtime.recorder import EpisodeRecorder
from runtime.remote.errors import RefusedError, UnavailableError
from runtime.remote.facade import EpisodeOutcome, EpisodeResult, RequestedMode, RobotSnapshot
from runtime.servo import Phase
from runtime.supervisor import Event, State, accepts

log = logging.getLogger(__name__)

_MODE_EVENTS: Mapping[RequestedMode, Event] = {
    "teleop": Event.TELEOP,
    "policy": Event.POLICY,
    "hold": Event.HOLD,
}
_SEEN_S = 1.0
_POLL_S = 0.005


class Robot:
    """Implements ``runtime.remote.facade.RobotFacade``. One per process; used on its event loop only.

    Whatever energises or changes the mode runs one at a time and checks, after everything it waited
    for, that nobody stopped the arm meanwhile. Stops never wait for it.
    """

    def __init__(
        self,
        name: str,
        loop: ControlLoop,
        follower: BusHandle,
        policy: PolicySource,
        recorder: EpisodeRecorder,
    ) -> None:
        self._name = name
        self._loop = loop
        self._follower = follower
        self._policy = policy
        self._recorder = recorder
        self._one_at_a_time = asyncio.Lock()
        self._stops = 0
        self._retired = False
        self._episode_ticks = 0
        self._ended: EpisodeRef | None = None
        self._last: EpisodeRef | None = None
        self.outcomes = Outcomes(policy)

    async def state(self) -> RobotSnapshot:
        loop, sample = self._loop, self._loop.sample
        self._notice_lost_episode()
        return RobotSnapshot(
            robot=self._name,
            mode=loop.state.value,
            reason=self._reason(),
            tick=loop.ticks,
            joints=None if sample is None else sample.joints,
            goal=None if sample is None else sample.goal,
            replies=None if sample is None else sample.counters,
            episode=self._recorder.running or "",
            policy=loop.policy_version,
            loop=loop.figures(),
            flags=tuple(loop.flags),
            recording=self._recorder.figures(),
        )

    # --- stopping: takes effect before anything is awaited -----------------------------------------

    async def stop(self, reason: str) -> None:
        """Nothing moves from here on; the bus process lowers the arm and releases it."""
        self._stops += 1
        self._loop.handle(Event.DISABLE, reason)
        await self._ask(self._follower.disable)

    async def retire(self, reason: str) -> None:
        """Stop, and refuse to be energised from here on: the service is ending."""
        self._retired = True
        await self.stop(reason)

    async def estop(self, reason: str) -> None:
        """The flag is raised before anything else."""
        self._follower.estop()
        self._stops += 1
        self._loop.handle(Event.ESTOP, reason)

    async def hold(self, reason: str) -> None:
        if self._loop.state.moving:
            self._loop.handle(Event.HOLD, reason)
            await self._ask(self._follower.hold)

    # --- energising and modes ----------------------------------------------------------------------

    async def enable(self) -> None:
        """off → ready. Out of a fault or a hold as well: a person asks for it, having looked."""
        async with self._one_at_a_time:
            state = self._loop.state
            if state.energised and state is not State.HOLD:
                return
            stops = self._stops
            sample = self._follower.latest()
            # The bus may be in fault before the loop's next tick has seen it.
            if state is State.FAULT or (sample is not None and sample.fault is not Fault.NONE):
                await self._ask(self._follower.clear_fault)
                await self._see(lambda s: s.fault is Fault.NONE, "the fault persists")
                self._loop.handle(Event.CLEAR_FAULT)
            if self._loop.state is not State.HOLD:
                self._require(Event.ENABLE)
            await self._energise(stops)
            self._loop.handle(Event.RESUME if self._loop.state is State.HOLD else Event.ENABLE, "enabled")

    async def clear_estop(self) -> None:
        async with self._one_at_a_time:
            self._require(Event.CLEAR_ESTOP)
            stops = self._stops
            await self._ask(self._follower.clear_estop)
            await self._see(lambda s: not s.estopped, "the bus process still reports the e-stop")
            self._not_stopped_since(stops)
            self._loop.handle(Event.CLEAR_ESTOP, "e-stop cleared")

    async def set_mode(self, mode: RequestedMode) -> None:
        async with self._one_at_a_time:
            if self._loop.state.value == mode:
                return
            stops, event = self._stops, _MODE_EVENTS[mode]
            if event is not Event.HOLD:
                await self._make_ready(stops)
            self._require(event)
            if event is Event.POLICY:
                active = await self.calibrate_monitors()
                await self._see_pictures(active.cameras)
                self._not_stopped_since(stops)
                self._require(event)
            if event is not Event.HOLD:
                # Whoever drives from here on may point anywhere: the first second is slow again.
                await self._energise(stops)
                self._require(event)
            self._loop.handle(event, f"{mode} asked for")
            if event is Event.HOLD:
                await self._ask(self._follower.hold)

    async def _make_ready(self, stops: int) -> None:
        """Out of a hold, or an arm that stood so long that it is being let down: ready again."""
        sample = self._follower.latest()
        lowering = sample is not None and sample.phase is Phase.LOWER
        if self._loop.state is State.HOLD or (self._loop.state is State.READY and lowering):
            await self._energise(stops)
            self._loop.handle(Event.RESUME)

    async def _energise(self, stops: int) -> None:
        """Torque, and the motion limits ramp up from nothing. The loop must not see a released arm."""
        if self._retired:
            raise RefusedError("the service is stopping", "start it again")
        await self._ask(self._follower.enable)
        if self._stops != stops:  # the stop may have been served first
            await self._ask(self._follower.disable)
        self._not_stopped_since(stops)
        await self._see(_energised, "the motors did not take torque, or the arm is in contact")
        self._not_stopped_since(stops)

    # --- policy ------------------------------------------------------------------------------------

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

    async def calibrate_monitors(self) -> SlotStatus:
        """Give the monitors the thresholds that belong to the weights that serve now, and return those."""
        try:
            active = (await self._policy.status(manifests=True)).active
        except PolicyClientError as error:
            raise UnavailableError(str(error), "start a policy server with `ratchet serve`") from error
        if active is None:
            raise UnavailableError("the policy server has no bundle", "load one with `ratchet model promote`")
        try:
            self._loop.recalibrate((active.manifest or {}).get("monitors"))
        except ThresholdError as error:
            raise UnavailableError(f"bundle {active.version}: {error}") from error
        self._loop.policy_version = active.version
        return active

    # --- episodes ----------------------------------------------------------------------------------

    async def start_episode(self, task: str) -> EpisodeResult:
        async with self._one_at_a_time:
            if self._recorder.running is not None:
                raise RefusedError(f"episode {self._recorder.running} is running", "end it first")
            await self._see_pictures()
            kind: Kind = "rollout" if self._loop.state is State.POLICY else "demo"
            provenance: dict[str, Any] = {"camera_stamps": self._loop.stamps()}
            if kind == "rollout":
                provenance["policy"] = self._loop.policy_version
            try:
                writer = await asyncio.to_thread(self._recorder.open, task, kind, provenance)
            except StoreError as error:
                raise UnavailableError(str(error)) from error
            self._loop.recorder_error = ""
            self._loop.begin_episode()
            self._episode_ticks = self._loop.ticks
            return EpisodeResult(self._recorder.begin(writer))

    async def end_episode(self, outcome: EpisodeOutcome, reason: str) -> EpisodeResult:
        began = time.monotonic()
        episode, sample = self._recorder.running, self._loop.sample
        if episode is None or sample is None:
            raise RefusedError(f"no episode is running: {self._loop.recorder_error or 'none was started'}")
        ticks = self._loop.ticks - self._episode_ticks
        flags = self._loop.finish_episode()
        try:
            if outcome == "discard":
                writer = self._recorder.drop()
                assert writer is not None
                await asyncio.to_thread(writer.discard)
            else:
                for flag in flags:
                    self._recorder.flag(flag)
                self._ended = self._last = self._recorder.end(outcome, reason, sample.goal)
        except StoreError as error:
            self._loop.recording_failed(error)
            raise UnavailableError(str(error)) from error
        kinds = tuple(sorted({flag.kind for flag in flags}))
        if outcome != "discard":
            self.outcomes.ended(episode, self._loop.drive, outcome == "failure", kinds)
        self._loop.drive = Drive()
        return EpisodeResult(episode, ticks, (time.monotonic() - began) * 1e3, kinds)

    async def throw_away(self, episode: str) -> EpisodeResult:
        async with self._one_at_a_time:
            ref = self._last
            if ref is None or ref.id != episode:
                raise RefusedError(f"{episode} is not the episode that ended last", "it stays")
            try:
                await asyncio.to_thread(self._recorder.throw_away, ref)
            except StoreError as error:
                raise UnavailableError(str(error)) from error
            self._last = None
            return EpisodeResult(episode)

    async def keep_last(self, task: str, outcome: Outcome) -> EpisodeResult:
        async with self._one_at_a_time:
            if self._recorder.running is not None:
                raise RefusedError(f"episode {self._recorder.running} is running", "it is being kept")
            try:
                ref, ticks = await asyncio.to_thread(self._recorder.keep_last, task, outcome)
            except StoreError as error:
                raise RefusedError(str(error)) from error
            self._ended = ref
            return EpisodeResult(ref.id, ticks)

    def _reason(self) -> str:
        """Why things are as they are: in a mode that was asked for, the recorder's trouble is the news."""
        mode, disk = self._loop.reason, self._loop.recorder_error
        asked = self._loop.state in (State.READY, State.TELEOP, State.POLICY)
        return (disk if asked else f"{mode}; {disk}") if disk else mode

    def _notice_lost_episode(self) -> None:
        """Publishing goes on behind; when it failed, the state says so."""
        ref = self._ended
        if ref is None or not ref.done:
            return
        self._ended = None
        try:
            ref.wait(0.0)
        except StoreError as error:
            self._loop.recorder_error = str(error)

    async def teleop_goal(self, position: Vector, age_ns: int) -> None:
        if self._loop.state is not State.TELEOP:
            raise RefusedError(f"the robot is in mode {self._loop.state.value}", "set mode teleop first")
        self._loop.remote_goal(position, age_ns)

    # --- helpers ---------------------------------------------------------------------------------

    def _require(self, event: Event) -> None:
        if not accepts(self._loop.state, event):
            raise RefusedError(
                f"{event.value} is not possible in mode {self._loop.state.value} ({self._loop.reason})",
                _way_out(self._loop.state),
            )

    def _not_stopped_since(self, stops: int) -> None:
        if self._stops != stops:
            raise RefusedError("the arm was stopped meanwhile", "enable it again when it is safe")

    async def _ask(self, request: Callable[[], Any]) -> None:
        """A request to the bus process, off the event loop; its refusal is the caller's."""
        try:
            await asyncio.to_thread(request)
        except BusProcessError as error:
            raise UnavailableError(str(error)) from error

    async def _see_pictures(self, cameras: Collection[str] | None = None) -> None:
        """Give ``cameras`` (all) a moment; neither a demonstration nor a policy is of use without."""
        deadline = time.monotonic() + _SEEN_S
        while blind := self._loop.blind(cameras):
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"camera {', '.join(blind)} gives no fresh picture",
                    "check its cable; `ratchet doctor` says more",
                )
            await asyncio.sleep(_POLL_S)

    async def _see(self, condition: Callable[[BusSample], bool], otherwise: str) -> None:
        """The bus process has granted a request; wait until a sample shows it."""
        deadline = time.monotonic() + _SEEN_S
        while time.monotonic() < deadline:
            sample = self._follower.latest()
            if sample is not None and condition(sample):
                return
            await asyncio.sleep(_POLL_S)
        raise UnavailableError(otherwise, "see `ratchet doctor`")


def _energised(sample: BusSample) -> bool:
    return sample.torque and sample.phase in (Phase.HOLD, Phase.FOLLOW) and sample.contact_joint < 0


def _way_out(state: State) -> str:
    ways = {
        State.OFF: "enable it first",
        State.FAULT: "mend the cause, then enable it",
        State.ESTOP: "make sure the arm is safe, then clear the e-stop",
    }
    return ways.get(state, "stop it first")
