"""A client for RobotControl: typed errors, a deadline on every call, a heartbeat that keeps the lease."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from protos.access.tls import Identity, open_channel
from protos.ratchet.v1 import robot_pb2 as pb
from protos.ratchet.v1 import robot_pb2_grpc as pb_grpc
from runtime.nouns import Vector
from runtime.remote.errors import LeaseLostError, RemoteError, one_line

_log = logging.getLogger(__name__)


_NOBODY = "failed to connect"  # gRPC's words; a robot that answers has its own


class RobotCallError(RemoteError):
    """A call to the robot failed; ``status`` is the gRPC status, the message the robot's own line."""

    def __init__(self, method: str, status: grpc.StatusCode, details: str, address: str = "") -> None:
        self.status = status
        if status is grpc.StatusCode.UNAVAILABLE and details.startswith(_NOBODY):
            super().__init__(
                f"no robot answers at {address}", "start it with `ratchet up`, or check the address"
            )
        else:
            super().__init__(f"{method}: {details or status.name.lower()}")


class RobotClient:
    """One connection to one robot; use as an async context manager.

    ``address`` as in RemoteConfig. ``tls`` is required unless the address is a unix socket or
    loopback. Every call has a deadline of ``timeout_s``. Raises CredentialsError; methods raise
    RobotCallError.
    """

    def __init__(self, address: str, tls: Identity | None = None, timeout_s: float = 5.0) -> None:
        self._address = address
        self._timeout_s = timeout_s
        options = (("grpc.max_receive_message_length", 1024 * 1024), ("grpc.keepalive_time_ms", 10_000))
        self._channel = open_channel(address, tls, options)
        self._stub = pb_grpc.RobotControlStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; safe to call twice."""
        await self._channel.close(None)

    async def _call(self, method: str, request: Any, timeout_s: float | None = None) -> Any:
        try:
            return await getattr(self._stub, method)(request, timeout=timeout_s or self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise _call_error(method, error, self._address) from None

    async def state(self) -> pb.RobotState:
        """The robot's present state."""
        return await self._call("GetState", pb.GetStateRequest())

    async def stop(self, reason: str = "") -> pb.Ack:
        """Stop moving and lower."""
        return await self._call("Stop", pb.StopRequest(reason=reason))

    async def estop(self, reason: str = "") -> pb.Ack:
        """Latch the emergency stop."""
        return await self._call("EStop", pb.EStopRequest(reason=reason))

    async def telemetry(self, rate_hz: float = 10.0) -> AsyncGenerator[pb.Telemetry, None]:
        """States at ``rate_hz`` until the consumer stops."""
        call = self._stub.StreamTelemetry(pb.StreamTelemetryRequest(rate_hz=rate_hz))
        try:
            async for sample in call:
                yield sample
        except grpc.aio.AioRpcError as error:
            raise _call_error("StreamTelemetry", error, self._address) from None
        finally:
            call.cancel()

    @contextlib.asynccontextmanager
    async def control(self, holder: str = "") -> AsyncIterator[Control]:
        """Hold the control lease for the block; heartbeats run beside it, the end releases it.

        Leaving the block puts a moving arm on hold. When the lease is lost inside the block, the
        next call of the Control raises LeaseLostError.
        """
        lease = await self._call("AcquireControl", pb.AcquireControlRequest(holder=holder))
        control = Control(self, lease)
        beat = asyncio.create_task(control.keep(), name="lease-heartbeat")
        try:
            yield control
        finally:
            beat.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await beat
            if control.lost is None:
                with contextlib.suppress(RobotCallError):  # the lease runs out by itself
                    await self._call("ReleaseControl", pb.ReleaseControlRequest(lease=lease.id))


class Control:
    """What the holder of the lease may do. Methods raise LeaseLostError once the lease is lost."""

    def __init__(self, client: RobotClient, lease: pb.Lease) -> None:
        self._client = client
        self.lease = lease
        self.lost: str | None = None

    async def keep(self) -> None:
        """Send heartbeats at a third of the window until cancelled or refused."""
        period_s = self.lease.window_s / 3
        while True:
            await asyncio.sleep(period_s)
            try:
                await self._client._call("Heartbeat", pb.HeartbeatRequest(lease=self.lease.id), period_s)
            except RobotCallError as error:
                if error.status is grpc.StatusCode.FAILED_PRECONDITION:
                    self.lost = str(error)
                    return
                _log.warning("heartbeat failed error=%s", error)

    async def _motion(self, method: str, request: Any) -> Any:
        if self.lost is not None:
            raise LeaseLostError("control of the robot was lost", "acquire it again")
        return await self._client._call(method, request)

    async def enable(self) -> pb.Ack:
        """Energise the arm."""
        return await self._motion("Enable", pb.LeaseRequest(lease=self.lease.id))

    async def clear_estop(self) -> pb.Ack:
        """Unlatch the emergency stop; call it only when a person asked for it."""
        return await self._motion("ClearEStop", pb.LeaseRequest(lease=self.lease.id))

    async def set_mode(self, mode: str) -> pb.Ack:
        """teleop, policy or hold."""
        return await self._motion("SetMode", pb.SetModeRequest(lease=self.lease.id, mode=mode))

    async def set_policy(self, bundle: str, backend: str = "") -> str:
        """Serve another bundle; returns its version."""
        request = pb.SetPolicyRequest(lease=self.lease.id, bundle=bundle, backend=backend)
        return (await self._motion("SetPolicy", request)).detail

    async def start_episode(self, task: str) -> pb.EpisodeReply:
        """Begin recording."""
        return await self._motion("StartEpisode", pb.StartEpisodeRequest(lease=self.lease.id, task=task))

    async def end_episode(self, outcome: str, reason: str = "") -> pb.EpisodeReply:
        """End the running episode: success, failure, unknown; discard throws it away."""
        request = pb.EndEpisodeRequest(lease=self.lease.id, outcome=outcome, reason=reason)
        return await self._motion("EndEpisode", request)

    async def throw_away(self, episode: str) -> pb.EpisodeReply:
        """Delete the episode that ended last, although it was kept."""
        request = pb.EndEpisodeRequest(lease=self.lease.id, outcome="discard", ended=episode)
        return await self._motion("EndEpisode", request)

    async def keep_last(self, task: str, outcome: str) -> pb.EpisodeReply:
        """Make an episode of the last seconds, in which nothing was recorded."""
        request = pb.KeepLastRequest(lease=self.lease.id, task=task, outcome=outcome)
        return await self._motion("KeepLast", request)

    async def teleop(self, goals: AsyncIterator[tuple[Vector, int]]) -> pb.TeleopSummary:
        """Stream joint goals, (rad (6,), monotonic ns at which the goal was made), to their end."""

        async def requests() -> AsyncIterator[pb.TeleopGoal]:
            seq = 0
            async for position, made_ns in goals:
                seq += 1
                age_ns = max(0, time.monotonic_ns() - made_ns)
                yield pb.TeleopGoal(lease=self.lease.id, position=position.tolist(), age_ns=age_ns, seq=seq)

        try:
            return await self._client._stub.Teleop(requests())
        except grpc.aio.AioRpcError as error:
            raise _call_error("Teleop", error, self._client._address) from None


def _call_error(method: str, error: grpc.aio.AioRpcError, address: str) -> RobotCallError:
    return RobotCallError(method, error.code(), one_line(RuntimeError(error.details() or "")), address)
