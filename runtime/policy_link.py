"""The connection to one policy server: made when it is needed, watched, given up when it is dead."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos.access.tls import Identity, open_channel
from protos.ratchet.v1 import policy_pb2, policy_pb2_grpc
from runtime.policy_types import (
    PolicyClientError,
    PolicyRefusedError,
    PolicyReplyError,
    PolicyTimeoutError,
    PolicyUnavailableError,
)

SERVICE = policy_pb2.DESCRIPTOR.services_by_name["PolicyService"].full_name
_GRACE_S = 5.0  # for a load or a swap that is under way on a connection that is given up
_UNAVAILABLE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}
_TIMED_OUT = {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", 64 * 2**20),
    ("grpc.max_send_message_length", 64 * 2**20),
    # gRPC's own pause between attempts starts at 1 s and grows to 2 min: too long for an arm that waits.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Else a new channel to the same address would take over the old one's connection.
    ("grpc.use_local_subchannel_pool", 1),
]


class PolicyLink:
    """Calls one policy server over one channel. Use it within one running event loop."""

    def __init__(self, address: str, identity: Identity | None) -> None:
        self.address = address
        self._identity = identity
        self._channel: grpc.aio.Channel | None = None
        self._closing: asyncio.Task[None] | None = None

    @property
    def channel(self) -> grpc.aio.Channel:
        """The present connection; a new one after `afresh`. Raises CredentialsError for unusable files."""
        if self._channel is None:
            self._channel = open_channel(self.address, self._identity, _CHANNEL_OPTIONS)
        return self._channel

    @property
    def stub(self) -> Any:
        """The service's methods."""
        return policy_pb2_grpc.PolicyServiceStub(self.channel)

    async def call(self, method: Any, request: Any, timeout_s: float) -> Any:
        """The reply to a request. Raises a PolicyClientError subclass."""
        try:
            reply: Awaitable[Any] = method(request, timeout=timeout_s)
            return await reply
        except grpc.aio.AioRpcError as error:
            raise _typed(error, self.address, timeout_s) from error

    async def check(self, timeout_s: float) -> None:
        """The heartbeat: gRPC's health check. Raises PolicyUnavailableError unless a bundle is served."""
        stub = health_pb2_grpc.HealthStub(self.channel)
        reply = await self.call(stub.Check, health_pb2.HealthCheckRequest(service=SERVICE), timeout_s)
        if reply.status != health_pb2.HealthCheckResponse.SERVING:
            raise PolicyUnavailableError(f"the policy server at {self.address} has no bundle", "load one")

    def afresh(self) -> None:
        """A connection can be spoilt and stay open: HTTP/2 then waits for the rest of a frame for ever."""
        channel, self._channel = self._channel, None
        if channel is not None and (self._closing is None or self._closing.done()):
            self._closing = asyncio.get_running_loop().create_task(channel.close(_GRACE_S))

    async def close(self) -> None:
        """Close the connection. Safe to call twice."""
        if self._closing is not None:
            self._closing.cancel()
            await asyncio.wait([self._closing])
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close(None)


def _typed(error: grpc.aio.AioRpcError, address: str, timeout_s: float) -> PolicyClientError:
    """The error of ours for a gRPC status."""
    code, details = error.code(), (error.details() or "").partition("; last error")[0]
    if code in _TIMED_OUT:
        return PolicyTimeoutError(f"the policy server at {address} did not answer within {timeout_s:.2f} s")
    if code in _UNAVAILABLE:
        return PolicyUnavailableError(f"the policy server at {address} cannot answer: {details}")
    if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS):
        return PolicyReplyError(f"the policy server at {address} failed: {details}")
    return PolicyRefusedError(details or code.name)
