"""The runtime's side of the policy server: observations out, action chunks in, never in the tick's way.

The control loop calls `PolicyClient.begin` and `PolicyClient.take`, neither of which waits or raises:
while the server is slow, gone or restarting, the arm goes on with the chunk it has, then holds.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable
from typing import Any

import grpc
import numpy as np

from hal.types import NUM_JOINTS
from protos.access.tls import Identity, open_channel
from protos.codec import CodecError, decode_tensor, encode_image, encode_tensor
from protos.ratchet.v1 import policy_pb2 as pb
from protos.ratchet.v1 import policy_pb2_grpc
from runtime.nouns import ActionChunk, Observation
from runtime.policy_types import (
    LoadResult,
    PolicyClientError,
    PolicyRefusedError,
    PolicyReplyError,
    PolicyStatus,
    PolicyTimeoutError,
    PolicyUnavailableError,
    SwapResult,
)

log = logging.getLogger(__name__)

MAX_CHUNK = 1024
MAX_FEATURES = 4096
_FIRST_BACKOFF_S = 0.05
_LAST_BACKOFF_S = 1.0
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


class PolicyClient:
    """Asks one policy server, at a unix socket or a loopback address, or anywhere with an ``identity``.

    ``timeout_s`` bounds each inference; ``session`` is a name for the server's log. With
    ``jpeg_quality`` pictures travel as JPEG instead of raw. Use it within one running event loop.
    """

    def __init__(
        self,
        address: str,
        timeout_s: float,
        session: str = "",
        jpeg_quality: int | None = None,
        identity: Identity | None = None,
    ) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._session = session
        self._jpeg_quality = jpeg_quality
        self._identity = identity
        self._channel: grpc.aio.Channel | None = None
        self._cameras: tuple[str, ...] | None = None
        self._ids = itertools.count(1)
        self._epoch_base = 0
        self._epoch_seen = 0
        self._task: asyncio.Task[ActionChunk] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._backoff_s = 0.0
        self._not_before = 0.0
        self.last_error: Exception | None = None
        self.failures = 0

    def begin(self, observation: Observation) -> bool:
        """Send an observation, unless one is under way or the server is being left alone for a moment.

        Never waits, never raises. Returns whether it was sent; the answer comes out of `take`.
        """
        if self._task is not None or time.monotonic() < self._not_before:
            return False
        self._task = asyncio.get_running_loop().create_task(self.infer(observation))
        return True

    def take(self) -> ActionChunk | None:
        """The chunk that has come since the last call, or None. Never waits, never raises.

        A failure is kept in ``last_error``, counted in ``failures`` and delays the next `begin`.
        """
        task = self._task
        if task is None or not task.done():
            return None
        self._task = None
        error = None if task.cancelled() else task.exception()
        if task.cancelled() or error is not None:
            self._failed(error)
            return None
        self._backoff_s, self.last_error = 0.0, None
        return task.result()

    @property
    def in_flight(self) -> bool:
        """Whether a request is under way or its answer has not been taken yet."""
        return self._task is not None

    async def infer(self, observation: Observation) -> ActionChunk:
        """The action chunk for an observation, within ``timeout_s``.

        Sends the cameras the serving policy looks through. The chunk's epoch never falls, also
        when the server restarts and counts afresh. Raises a PolicyClientError subclass.
        """
        deadline = time.monotonic() + self._timeout_s
        if self._cameras is None:
            self._cameras = await self._ask_cameras(self._timeout_s)
        request = self._request(observation, self._cameras)
        try:
            response = await self._call(self._stub().Infer, request, max(deadline - time.monotonic(), 0.001))
        except PolicyClientError:
            # Whoever answers next may serve another policy with other cameras.
            self._cameras = None
            raise
        return self._chunk(request, response)

    async def load(
        self, path: str, backend: str = "", activate: bool = False, timeout_s: float = 120.0
    ) -> LoadResult:
        """Load a bundle directory beside the serving one; ``activate`` serves it at once.

        Raises PolicyRefusedError with the server's reason; the old bundle then goes on serving.
        """
        request = pb.LoadRequest(path=path, backend=backend, activate=activate)
        reply = await self._call(self._stub().Load, request, timeout_s)
        return LoadResult(
            reply.version, reply.verify_ms, reply.load_ms, reply.warm_ms, reply.active, reply.epoch
        )

    async def swap(self, version: str, timeout_s: float = 5.0) -> SwapResult:
        """Serve a loaded version from the next request on. Raises PolicyRefusedError."""
        reply = await self._call(self._stub().Swap, pb.SwapRequest(version=version), timeout_s)
        return SwapResult(reply.version, reply.previous, reply.epoch, reply.swap_ms)

    async def rollback(self, timeout_s: float = 5.0) -> SwapResult:
        """Serve the predecessor again. Raises PolicyRefusedError when there is none."""
        reply = await self._call(self._stub().Rollback, pb.RollbackRequest(), timeout_s)
        return SwapResult(reply.version, reply.previous, reply.epoch, reply.swap_ms)

    async def status(self, manifests: bool = False, timeout_s: float = 5.0) -> PolicyStatus:
        """What is loaded and how the server has done; ``manifests`` brings each bundle's manifest too."""
        reply = await self._call(self._stub().Status, pb.StatusRequest(manifests=manifests), timeout_s)
        return PolicyStatus.from_message(reply)

    async def close(self) -> None:
        """Give up what is under way and close the connection. Safe to call twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # seen: nobody is left to tell
        if self._closing is not None:
            self._closing.cancel()
            await asyncio.wait([self._closing])
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close(None)

    def _stub(self) -> Any:
        if self._channel is None:
            self._channel = open_channel(self._address, self._identity, _CHANNEL_OPTIONS)
        return policy_pb2_grpc.PolicyServiceStub(self._channel)

    async def _call(self, method: Any, request: Any, timeout_s: float) -> Any:
        try:
            call: Awaitable[Any] = method(request, timeout=timeout_s)
            return await call
        except grpc.aio.AioRpcError as error:
            raise _typed(error, self._address, timeout_s) from error

    async def _ask_cameras(self, timeout_s: float) -> tuple[str, ...]:
        active = (await self.status(timeout_s=timeout_s)).active
        if active is None:
            raise PolicyUnavailableError(f"the policy server at {self._address} has no bundle", "load one")
        return active.cameras

    def _request(self, observation: Observation, cameras: tuple[str, ...]) -> pb.InferRequest:
        images = []
        for camera in cameras:
            frame = observation.frames.get(camera)
            if frame is None:
                raise PolicyClientError(
                    f"the policy looks through camera {camera}, which has no picture yet", "check the camera"
                )
            try:
                images.append(encode_image(camera, frame.image, frame.seq, frame.t_ns, self._jpeg_quality))
            except CodecError as error:
                raise PolicyClientError(str(error), "check the camera") from error
        return pb.InferRequest(
            request_id=next(self._ids),
            session=self._session,
            tick=observation.tick,
            observation_ns=observation.t_ns,
            state=encode_tensor(observation.joints.position.astype(np.float32)),
            images=images,
        )

    def _chunk(self, request: pb.InferRequest, response: pb.InferResponse) -> ActionChunk:
        """Check an answer and make a chunk of it: what is not a finite chunk goes no further."""
        if (response.request_id, response.tick) != (request.request_id, request.tick):
            raise PolicyReplyError("the policy server answered another request", "restart it")
        try:
            actions = decode_tensor(
                response.actions, "actions", np.float32, (None, NUM_JOINTS), max_axis=MAX_CHUNK
            )
            features = None
            if response.HasField("features"):
                features = decode_tensor(response.features, "features", np.float32, (None,), MAX_FEATURES)
        except CodecError as error:
            raise PolicyReplyError(f"the policy server's answer is unusable: {error}") from error
        if not np.isfinite(actions).all():
            raise PolicyReplyError(f"bundle {response.version} gave a NaN or an infinity", "roll it back")
        return ActionChunk(
            actions=actions,
            start_tick=request.tick,
            obs_t_ns=request.observation_ns,
            version=response.version,
            epoch=self._rising(response.epoch),
            exec_ms=response.exec_ms,
            features=features,
        )

    def _rising(self, epoch: int) -> int:
        if epoch < self._epoch_seen:
            self._epoch_base += self._epoch_seen
        self._epoch_seen = epoch
        return self._epoch_base + epoch

    def _failed(self, error: BaseException | None) -> None:
        if isinstance(error, Exception) and not isinstance(error, PolicyClientError):
            log.error("policy_client.bug", exc_info=error)
        self.last_error = error if isinstance(error, Exception) else PolicyClientError("cancelled")
        self.failures += 1
        if self._backoff_s == 0.0:
            log.warning("policy_client.failed reason=%s", self.last_error)
        self._backoff_s = min(max(2 * self._backoff_s, _FIRST_BACKOFF_S), _LAST_BACKOFF_S)
        self._not_before = time.monotonic() + self._backoff_s
        if self._backoff_s == _LAST_BACKOFF_S:
            self._connect_afresh()

    def _connect_afresh(self) -> None:
        """A connection can be spoilt and stay open: HTTP/2 then waits for the rest of a frame for ever."""
        channel, self._channel = self._channel, None
        if channel is not None and (self._closing is None or self._closing.done()):
            self._closing = asyncio.get_running_loop().create_task(channel.close(_GRACE_S))


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
