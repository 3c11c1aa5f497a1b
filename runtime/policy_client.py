"""The runtime's side of the policy server: observations out, action chunks in, never in the tick's way.

The control loop calls `PolicyClient.begin` and `PolicyClient.take`, neither of which waits or raises:
while the server is slow, gone or restarting, the arm goes on with the chunk it has, then holds.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hal.types import NUM_JOINTS, Frame
from protos.access.tls import Identity
from protos.codec import CodecError, decode_tensor, encode_tensor
from protos.ratchet.v1 import policy_pb2 as pb
from runtime.frame_lane import FrameLane
from runtime.loop_stats import Samples
from runtime.nouns import ActionChunk, Observation
from runtime.outcomes import Outcome
from runtime.pace import Pace
from runtime.pictures import Choice, Packed, PictureWire
from runtime.policy_link import PolicyLink
from runtime.policy_log import PolicyLog
from runtime.policy_types import (
    LoadResult,
    PolicyClientError,
    PolicyReplyError,
    PolicyStatus,
    PolicyUnavailableError,
    SwapResult,
)

log = logging.getLogger(__name__)

MAX_CHUNK = 1024
MAX_FEATURES = 4096
HEARTBEAT_S = 1.0
_FIRST_BACKOFF_S = 0.05
_LAST_BACKOFF_S = 1.0
_TICK_S = 1 / 30


@dataclass(slots=True)
class _Asked:
    """A request under way: its task, and when it was begun, s."""

    task: asyncio.Task[ActionChunk]
    begun_s: float


class PolicyClient:
    """Asks one policy server, at a unix socket or a loopback address, or anywhere with an ``identity``.

    ``timeout_s`` bounds each inference; ``session`` is a name for the server's log; ``pictures`` is how
    they travel where memory cannot be shared. Use it within one running event loop.
    """

    def __init__(
        self,
        address: str,
        timeout_s: float,
        session: str = "",
        pictures: Choice = "auto",
        identity: Identity | None = None,
    ) -> None:
        self._link = PolicyLink(address, identity)
        self._timeout_s = timeout_s
        self._session = session
        self._cameras: tuple[str, ...] | None = None
        self._ids = itertools.count(1)
        self._epoch_base = 0
        self._epoch_seen = 0
        self._asked: list[_Asked] = []
        self._backoff_s = 0.0
        self._not_before = 0.0
        self._last_word_s = 0.0
        self.pace = Pace(_TICK_S, timeout_s)
        self.wire = PictureWire(pictures)
        self.lane = FrameLane(session)
        self.round_trip_ms = Samples()
        self.log: PolicyLog | None = None
        self.last_error: Exception | None = None
        self.failures = 0

    @property
    def address(self) -> str:
        """Where the server is."""
        return self._link.address

    def begin(self, observation: Observation) -> bool:
        """Send an observation, unless that is too soon or the server is being left alone for a moment.

        Never waits, never raises. Returns whether it was sent; the answer comes out of `take`.
        """
        now_s = time.monotonic()
        since_s = now_s - self._asked[-1].begun_s if self._asked else 0.0
        if now_s < self._not_before or not self.pace.may_ask(len(self._asked), since_s):
            return False
        task = asyncio.get_running_loop().create_task(self.infer(observation))
        self._asked.append(_Asked(task, now_s))
        return True

    def take(self) -> ActionChunk | None:
        """The newest chunk that has come since the last call, or None. Never waits, never raises.

        A failure is kept in ``last_error``, counted in ``failures`` and delays the next `begin`.
        """
        chunk = None
        while chunk is None and (done := [asked for asked in self._asked if asked.task.done()]):
            asked = done[-1]
            number = self._asked.index(asked)
            error = None if asked.task.cancelled() else asked.task.exception()
            if asked.task.cancelled() or error is not None:
                del self._asked[number]
                self._failed(error)
                continue
            for older in self._asked[:number]:  # what they were asked, this answer knows better
                older.task.cancel()
            del self._asked[: number + 1]
            self._backoff_s, self.last_error = 0.0, None
            chunk = asked.task.result()
        return chunk

    @property
    def in_flight(self) -> bool:
        """Whether a request is under way or its answer has not been taken yet."""
        return bool(self._asked)

    @property
    def waiting_s(self) -> float:
        """How long the oldest unanswered request has been under way, s; 0 without one."""
        begun = [asked.begun_s for asked in self._asked if not asked.task.done()]
        return time.monotonic() - min(begun) if begun else 0.0

    @property
    def round_trip_s(self) -> float | None:
        """What an answer takes, smoothed, s; None before the first."""
        return self.pace.mean_s

    async def infer(self, observation: Observation) -> ActionChunk:
        """The action chunk for an observation, within ``timeout_s``.

        Sends the cameras the serving policy looks through. The chunk's epoch never falls, also
        when the server restarts and counts afresh. Raises a PolicyClientError subclass.
        """
        begun_s = time.monotonic()
        if self._cameras is None:
            self._cameras = await self._ask_cameras(self._timeout_s)
            self.lane.open(self._link.stub, self._link.channel)
        frames = _wanted(observation, self._cameras)
        request = self._request(observation)
        placed, packed = self.lane.place(frames), None
        if placed is not None:
            request.lane = placed.lane
            request.frames.extend(placed.frames)
        else:
            packed = await self._pack(frames)
            request.images.extend(packed.images)
        left_s = max(begun_s + self._timeout_s - time.monotonic(), 0.001)
        request.deadline_ms = left_s * 1e3
        try:
            sent_s = time.monotonic()
            response = await self._link.call(self._link.stub.Infer, request, left_s)
        except PolicyClientError:
            # Whoever answers next may serve another policy with other cameras.
            self._cameras = None
            raise
        finally:
            self.lane.release(placed)
        chunk = self._chunk(request, response)
        self._measure(begun_s, sent_s, packed, response)
        return chunk

    async def beat(self, timeout_s: float = HEARTBEAT_S) -> None:
        """Ask whether the server is there and serves. Raises a PolicyClientError subclass."""
        begun_s = time.monotonic()
        await self._link.check(timeout_s)
        self._last_word_s = time.monotonic()
        self.wire.beat(self._last_word_s - begun_s)

    async def heartbeat(self) -> None:
        """Until cancelled: a connection that has died without a word is noticed within twice a second.

        Asks only when no answer came for a second. What is found is in ``last_error`` and ``failures``.
        """
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            if time.monotonic() - self._last_word_s < HEARTBEAT_S:
                continue
            try:
                await self.beat()
            except PolicyClientError as error:
                self._failed(error)
            else:
                if not self._asked:
                    self._backoff_s, self.last_error = 0.0, None

    async def load(
        self, path: str, backend: str = "", activate: bool = False, timeout_s: float = 120.0
    ) -> LoadResult:
        """Load a bundle directory beside the serving one; ``activate`` serves it at once.

        Raises PolicyRefusedError with the server's reason; the old bundle then goes on serving.
        """
        # Whoever asks through the robot is a person: also what was rolled back may come back.
        request = pb.LoadRequest(path=path, backend=backend, activate=activate, by_person=True)
        reply = await self._link.call(self._link.stub.Load, request, timeout_s)
        return LoadResult(
            reply.version, reply.verify_ms, reply.load_ms, reply.warm_ms, reply.active, reply.epoch
        )

    async def swap(self, version: str, timeout_s: float = 5.0) -> SwapResult:
        """Serve a loaded version from the next request on. Raises PolicyRefusedError."""
        reply = await self._link.call(
            self._link.stub.Swap, pb.SwapRequest(version=version, by_person=True), timeout_s
        )
        return SwapResult(reply.version, reply.previous, reply.epoch, reply.swap_ms)

    async def rollback(self, timeout_s: float = 5.0) -> SwapResult:
        """Serve the predecessor again. Raises PolicyRefusedError when there is none."""
        reply = await self._link.call(self._link.stub.Rollback, pb.RollbackRequest(), timeout_s)
        return SwapResult(reply.version, reply.previous, reply.epoch, reply.swap_ms)

    async def report(self, outcome: Outcome, timeout_s: float = 5.0) -> str:
        """Tell how an episode ended; returns the server's verdict on a bundle on probation, or ""."""
        request = pb.ReportRequest(
            session=self._session,
            episode=outcome.episode,
            version=outcome.version,
            failed=outcome.failed,
            flags=outcome.flags,
            mixed=outcome.mixed,
        )
        return str((await self._link.call(self._link.stub.Report, request, timeout_s)).verdict)

    async def status(self, manifests: bool = False, timeout_s: float = 5.0) -> PolicyStatus:
        """What is loaded and how the server has done; ``manifests`` brings each bundle's manifest too."""
        reply = await self._link.call(
            self._link.stub.Status, pb.StatusRequest(manifests=manifests), timeout_s
        )
        return PolicyStatus.from_message(reply)

    async def close(self) -> None:
        """Give up what is under way and close the connection. Safe to call twice."""
        asked, self._asked = self._asked, []
        for one in asked:
            one.task.cancel()
        # Seen, whatever became of them: nobody is left to tell.
        await asyncio.gather(*(one.task for one in asked), return_exceptions=True)
        await self.lane.close()
        await self._link.close()

    async def _ask_cameras(self, timeout_s: float) -> tuple[str, ...]:
        active = (await self.status(timeout_s=timeout_s)).active
        if active is None:
            raise PolicyUnavailableError(f"the policy server at {self.address} has no bundle", "load one")
        return active.cameras

    def _request(self, observation: Observation) -> pb.InferRequest:
        return pb.InferRequest(
            request_id=next(self._ids),
            session=self._session,
            tick=observation.tick,
            observation_ns=observation.t_ns,
            state=encode_tensor(observation.joints.position.astype(np.float32)),
        )

    async def _pack(self, frames: Sequence[Frame]) -> Packed:
        try:
            if self.wire.costly:
                return await asyncio.to_thread(self.wire.pack, frames)
            return self.wire.pack(frames)
        except CodecError as error:
            raise PolicyClientError(str(error), "check the camera") from error

    def _measure(
        self, begun_s: float, sent_s: float, packed: Packed | None, response: pb.InferResponse
    ) -> None:
        now_s = self._last_word_s = time.monotonic()
        server_s = (response.exec_ms + response.queue_ms) / 1e3
        self.pace.answered(now_s - begun_s)
        self.round_trip_ms.add((now_s - begun_s) * 1e3)
        if packed is not None:
            self.wire.sent(packed, now_s - sent_s, server_s)
        if self.log is not None:
            self.log.answered(response, begun_s, now_s, packed)

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
        if not np.isfinite(actions).all() or (features is not None and not np.isfinite(features).all()):
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
            self._link.afresh()
            self._cameras = None
            self.pace.forget()
            self.wire.forget()


def _wanted(observation: Observation, cameras: Sequence[str]) -> list[Frame]:
    """The pictures a policy looks through. Raises PolicyClientError when there is none of one of them."""
    for camera in cameras:
        if camera not in observation.frames:
            raise PolicyClientError(
                f"the policy looks through camera {camera}, which has no picture yet", "check the camera"
            )
    return [observation.frames[camera] for camera in cameras]
