# ruff: noqa: N802 (method names are the wire contract's)
"""RobotControl over gRPC: each method checks its lease and arguments, then asks the facade.

Stop and EStop take no lease, wait for nothing and touch the facade first. Everything else that
moves the arm names a lease, and the lease is checked again after the call: if it was lost in the
meantime, the arm is put on hold whatever the call did. An episode belongs to the lease under which it
was begun: whoever loses control or gives it back does not leave it running.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator
from typing import Any

from hal.clock import Clock
from hal.errors import HalError
from protos.ratchet.v1 import robot_pb2 as pb
from protos.ratchet.v1 import robot_pb2_grpc as pb_grpc
from runtime.errors import RuntimeFault
from runtime.remote import messages
from runtime.remote.config import RemoteConfig
from runtime.remote.errors import BadRequestError, LeaseLostError, RefusedError, TooManyError
from runtime.remote.facade import RobotFacade
from runtime.remote.gate import Context, Gate
from runtime.remote.lease import ControlLease, LeaseInfo
from runtime.remote.teleop import TeleopFreshness

_log = logging.getLogger(__name__)


class RobotControlService(pb_grpc.RobotControlServicer):
    """The servicer. ``run`` must be running beside it: it watches the lease and teleoperation."""

    def __init__(self, facade: RobotFacade, config: RemoteConfig, clock: Clock, gate: Gate) -> None:
        self._facade = facade
        self._config = config
        self._clock = clock
        self._gate = gate
        self._telemetry_streams = 0
        self._teleop_streams = 0
        self._episode = ""  # begun under the lease in force
        self.lease = ControlLease(config.lease_window_s, clock, self._give_up)
        self.teleop = TeleopFreshness(config.teleop_stale_s, clock, self._hold)

    async def run(self) -> None:
        """Watch the lease and the teleoperation stream until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.lease.watch())
            group.create_task(self.teleop.watch())

    async def _hold(self, reason: str) -> None:
        self.teleop.disarm()
        try:
            await self._facade.hold(reason)
        except (RuntimeFault, HalError) as error:
            # The servo core holds by itself once its last waypoint expires.
            _log.error("hold failed reason=%s error=%s", reason, error)

    async def _give_up(self, reason: str) -> None:
        """Nobody has control any more: hold, and end the episode that was begun under the lease."""
        await self._hold(reason)
        episode, self._episode = self._episode, ""
        if episode:
            await self._end(episode, reason)

    async def _end(self, episode: str, reason: str) -> None:
        """End ``episode`` if it is still the one that runs; its outcome is nobody's to tell."""
        try:
            if (await self._facade.state()).episode == episode:
                await self._facade.end_episode("unknown", reason)
                _log.warning("episode ended id=%s reason=%s", episode, reason)
        except (RuntimeFault, HalError) as error:
            _log.error("episode not ended id=%s error=%s", episode, error)

    # --- looking -------------------------------------------------------------------------------

    async def GetState(self, request: pb.GetStateRequest, context: Context) -> pb.RobotState:
        return messages.robot_state(await self._facade.state(), self.lease.holder)

    async def StreamTelemetry(
        self, request: pb.StreamTelemetryRequest, context: Context
    ) -> AsyncIterator[pb.Telemetry]:
        rate_hz = request.rate_hz or 10.0
        if not math.isfinite(rate_hz) or not 0.1 <= rate_hz <= self._config.telemetry_max_hz:
            raise BadRequestError(
                f"telemetry at {rate_hz:g} Hz is not offered",
                f"ask for 0.1 to {self._config.telemetry_max_hz:g} Hz",
            )
        if self._telemetry_streams >= self._config.telemetry_max_streams:
            raise TooManyError(f"{self._telemetry_streams} telemetry streams are open", "close one")
        period_ns = round(1e9 / rate_hz)
        self._telemetry_streams += 1
        try:
            due_ns = self._clock.now_ns()
            while True:
                snapshot = await self._facade.state()
                yield pb.Telemetry(
                    t_ns=self._clock.now_ns(), state=messages.robot_state(snapshot, self.lease.holder)
                )
                now_ns = self._clock.now_ns()
                due_ns += period_ns * (1 + max(0, now_ns - due_ns) // period_ns)  # skip, never burst
                await asyncio.sleep((due_ns - now_ns) / 1e9)
        finally:
            self._telemetry_streams -= 1

    # --- stopping: no lease, no queue ----------------------------------------------------------

    async def EStop(self, request: pb.EStopRequest, context: Context) -> pb.Ack:
        await self._facade.estop(_stop_reason(request.reason, "remote e-stop"))
        self.teleop.disarm()
        _log.warning("remote e-stop caller=%s", self._gate.caller(context).name)
        return await self._ack("emergency stop latched")

    async def Stop(self, request: pb.StopRequest, context: Context) -> pb.Ack:
        await self._facade.stop(_stop_reason(request.reason, "remote stop"))
        self.teleop.disarm()
        return await self._ack("stopping")

    # --- the lease -----------------------------------------------------------------------------

    async def AcquireControl(self, request: pb.AcquireControlRequest, context: Context) -> pb.Lease:
        caller = self._gate.caller(context)
        holder = messages.text(request.holder, "holder", limit=64) or caller.name
        return _lease_message(self.lease.acquire(holder, caller.name))

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: Context) -> pb.Lease:
        return _lease_message(self.lease.heartbeat(request.lease, self._gate.caller(context).name))

    async def ReleaseControl(self, request: pb.ReleaseControlRequest, context: Context) -> pb.Ack:
        self._require(request.lease, context)
        await self._give_up("control released")
        self.lease.release(request.lease, self._gate.caller(context).name)
        return await self._ack("released")

    def _require(self, lease_id: str, context: Context) -> LeaseInfo:
        return self.lease.require(lease_id, self._gate.caller(context).name)

    async def _still_held(self, lease_id: str, context: Context) -> None:
        """Hold and raise LeaseLostError when the lease was lost while the facade was at work."""
        try:
            self._require(lease_id, context)
        except LeaseLostError:
            await self._hold("lease lost during the request")
            raise

    # --- driving -------------------------------------------------------------------------------

    async def Enable(self, request: pb.LeaseRequest, context: Context) -> pb.Ack:
        self._require(request.lease, context)
        await self._facade.enable()
        await self._still_held(request.lease, context)
        return await self._ack("enabled")

    async def ClearEStop(self, request: pb.LeaseRequest, context: Context) -> pb.Ack:
        lease = self._require(request.lease, context)
        await self._facade.clear_estop()
        _log.warning("e-stop cleared by=%s caller=%s", lease.holder, lease.caller)
        return await self._ack("emergency stop cleared")

    async def SetMode(self, request: pb.SetModeRequest, context: Context) -> pb.Ack:
        self._require(request.lease, context)
        mode = messages.requested_mode(request.mode)
        self.teleop.disarm()
        await self._facade.set_mode(mode)
        await self._still_held(request.lease, context)
        if mode == "teleop":
            self.teleop.arm()
        return await self._ack(f"mode {mode}")

    async def SetPolicy(self, request: pb.SetPolicyRequest, context: Context) -> pb.Ack:
        self._require(request.lease, context)
        bundle = messages.text(request.bundle, "bundle", limit=messages.MAX_PATH, required=True)
        backend = messages.text(request.backend, "backend", limit=32)
        version = await self._facade.set_policy(bundle, backend)
        await self._still_held(request.lease, context)
        return await self._ack(version)

    async def StartEpisode(self, request: pb.StartEpisodeRequest, context: Context) -> pb.EpisodeReply:
        self._require(request.lease, context)
        task = messages.text(request.task, "task", required=True)
        started = await self._facade.start_episode(task)
        try:
            await self._still_held(request.lease, context)
        except LeaseLostError:
            await self._end(started.id, "control lost while the episode began")
            raise
        self._episode = started.id
        return messages.episode_reply(started)

    async def EndEpisode(self, request: pb.EndEpisodeRequest, context: Context) -> pb.EpisodeReply:
        self._require(request.lease, context)
        outcome = messages.episode_outcome(request.outcome)
        reason = messages.text(request.reason, "reason")
        if request.ended:
            if outcome != "discard":
                raise BadRequestError("an episode that has ended keeps its outcome", "it can be discarded")
            last = messages.text(request.ended, "ended", limit=64)
            return messages.episode_reply(await self._facade.throw_away(last))
        ended = await self._facade.end_episode(outcome, reason)
        self._episode = ""
        return messages.episode_reply(ended)

    async def KeepLast(self, request: pb.KeepLastRequest, context: Context) -> pb.EpisodeReply:
        self._require(request.lease, context)
        task = messages.text(request.task, "task", required=True)
        outcome = messages.episode_outcome(request.outcome)
        if outcome == "discard":
            raise BadRequestError("the last seconds cannot be kept and discarded", "give another outcome")
        return messages.episode_reply(await self._facade.keep_last(task, outcome))

    async def Teleop(
        self, request_iterator: AsyncIterator[pb.TeleopGoal], context: Context
    ) -> pb.TeleopSummary:
        if self._teleop_streams:
            raise TooManyError("a teleoperation stream is already open", "close it first")
        received = refused = 0
        self._teleop_streams += 1
        try:
            async for goal in request_iterator:
                self._require(goal.lease, context)
                position = messages.joint_goal(goal.position)
                received += 1
                if not await self._take_goal(position, goal.age_ns):
                    refused += 1
        finally:
            self._teleop_streams -= 1
            if self.teleop.active:
                await self._hold("teleoperation stream ended")
        return pb.TeleopSummary(received=received, refused=refused)

    async def _take_goal(self, position: Any, age_ns: int) -> bool:
        try:
            self.teleop.take(age_ns)
            await self._facade.teleop_goal(position, age_ns)
        except RefusedError:
            return False
        return True

    async def _ack(self, detail: str) -> pb.Ack:
        return pb.Ack(ok=True, mode=(await self._facade.state()).mode, detail=detail)


def _stop_reason(reason: str, default: str) -> str:
    """A reason can never be a ground to refuse a stop: clean it instead."""
    return (
        " ".join("".join(c if c.isprintable() else " " for c in reason).split())[: messages.MAX_TEXT]
        or default
    )


def _lease_message(lease: LeaseInfo) -> pb.Lease:
    return pb.Lease(id=lease.id, holder=lease.holder, window_s=lease.window_s)
