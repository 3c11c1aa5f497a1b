"""Where a request comes in: whose it is, whether it may wait, what it says, and what becomes of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from policy_server.answered import Answered
from policy_server.batch import Answer
from policy_server.clients import Client, Clients
from policy_server.config import ServerConfig
from policy_server.decoders import Decoders
from policy_server.errors import (
    ExpiredError,
    LaneError,
    NothingServingError,
    OverloadedError,
    PeerError,
    RequestError,
    ServerError,
)
from policy_server.inference import Counters, InferenceWorker
from policy_server.lanes import Lanes
from policy_server.slots import BundleSlots
from policy_server.spec import Inputs, IOSpec, check_request, check_session
from protos.access.call import REQUEST_BYTES, caller_name
from protos.codec import encode_tensor
from protos.ratchet.v1 import common_pb2
from protos.ratchet.v1 import policy_pb2 as pb

_DECODERS = 2
_MIB = 2**20
_BESIDE_PICTURES = 65_536  # joints, names, headers of pictures


class RequestDesk:
    """Takes requests of unary calls and streams alike."""

    def __init__(
        self,
        config: ServerConfig,
        slots: BundleSlots,
        clients: Clients,
        lanes: Lanes,
        worker: InferenceWorker,
    ) -> None:
        self._config = config
        self._slots = slots
        self._clients = clients
        self._lanes = lanes
        self._worker = worker
        self.answered = Answered()
        self._held_bytes = 0
        self._decoders = Decoders(_DECODERS)

    def close(self) -> None:
        """Stop the decoding threads; one that does not come back is left behind."""
        self._decoders.close()

    async def answer(
        self, request: pb.InferRequest, remaining_s: float | None, peer: str
    ) -> pb.InferResponse:
        """The answer to one request; ``remaining_s`` is what is left of its call's own deadline.

        ``peer`` stands in for a session without a name. Raises a ServerError, and counts what happened.
        """
        counters, owner = self._worker.counters, caller_name()
        with _counted(counters, None):
            check_session(request.session)
            deadline_ns = self._deadline(request, remaining_s)
            client = self._clients.seen(request.session or peer, owner)
        with _counted(counters, client), self._in_flight(client):
            serving = self._slots.serving
            if serving is None:
                raise NothingServingError("no bundle is loaded; load one")
            with self._held(_weight(request, serving.slot.spec)):
                inputs = await self._check(request, serving.slot.spec, deadline_ns)
                client.shared += len(request.frames)
                client.sent += len(request.images)
                answer = await self._worker.infer(client, inputs, deadline_ns)
        counters.answered(answer.exec_ms)
        client.served += 1
        self.answered.note((owner, client.session), answer.version, answer.epoch)
        return _response(request, answer)

    def _deadline(self, request: pb.InferRequest, remaining_s: float | None) -> int:
        """Monotonic ns: the soonest of the request's, its call's and the server's own."""
        limits = [self._config.default_deadline_s]
        if remaining_s is not None:
            limits.append(remaining_s)
        if request.deadline_ms:
            if not request.deadline_ms > 0:
                raise RequestError(
                    "deadline_ms is negative or not a number; send what is left of the deadline"
                )
            limits.append(request.deadline_ms / 1e3)
        return time.monotonic_ns() + round(min(limits) * 1e9)

    @contextmanager
    def _in_flight(self, client: Client) -> Iterator[None]:
        if client.in_flight >= self._config.max_in_flight:
            raise OverloadedError(
                f"session {client.session!r} has {client.in_flight} requests waiting; "
                "ask again when one is answered"
            )
        client.in_flight += 1
        try:
            yield
        finally:
            client.in_flight -= 1

    @contextmanager
    def _held(self, size: int) -> Iterator[None]:
        """Count bytes for as long as their request waits or is computed."""
        most = self._config.max_waiting_mib
        if self._held_bytes + size > most * _MIB:
            raise OverloadedError(
                f"requests of {self._held_bytes / _MIB:.1f} MiB are waiting, at most {most} MiB may "
                "(max_waiting_mib); ask again when one is answered"
            )
        self._held_bytes += size
        try:
            yield
        finally:
            self._held_bytes -= size

    async def _check(self, request: pb.InferRequest, spec: IOSpec, deadline_ns: int) -> Inputs:
        check = partial(check_request, request, spec, partial(self._lanes.picture, request.lane))
        if any(image.encoding == common_pb2.IMAGE_ENCODING_JPEG for image in request.images):
            # Milliseconds each, during which nobody else would be heard.
            return await self._decoders.run(check, deadline_ns)
        return check()


@contextmanager
def _counted(counters: Counters, client: Client | None) -> Iterator[None]:
    """Count what a request that isn't answered came to: dropped, refused or failed."""
    tallies: list[Counters | Client] = [counters] if client is None else [counters, client]
    try:
        yield
    except (asyncio.CancelledError, ExpiredError):
        for tally in tallies:
            tally.dropped += 1
        raise
    except (RequestError, OverloadedError, LaneError, PeerError):
        for tally in tallies:
            tally.refused += 1
        raise
    except ServerError:
        for tally in tallies:
            tally.failed += 1
        raise


def _weight(request: pb.InferRequest, spec: IOSpec) -> int:
    """Bytes that a request holds until it is answered: as it came, and what its JPEGs are decoded to.

    Raises RequestError for one that is far larger than what the policy looks at.
    """
    sizes = {camera.name: camera.height * camera.width * 3 for camera in spec.cameras}
    came, most = REQUEST_BYTES.get(), 2 * sum(sizes.values()) + _BESIDE_PICTURES
    if came > most:
        raise RequestError(f"the request has {came} bytes; this policy's cameras need at most {most}")
    jpegs = (image for image in request.images if image.encoding == common_pb2.IMAGE_ENCODING_JPEG)
    return came + sum(sizes.get(image.camera, 0) for image in jpegs)


def refusal(request: pb.InferRequest, error: ServerError) -> pb.InferResponse:
    """How a stream says that one of its requests is not answered."""
    return pb.InferResponse(
        request_id=request.request_id,
        tick=request.tick,
        observation_ns=request.observation_ns,
        status=error.status.value[0],
        reason=str(error),
    )


def _response(request: pb.InferRequest, answer: Answer) -> pb.InferResponse:
    return pb.InferResponse(
        request_id=request.request_id,
        tick=request.tick,
        observation_ns=request.observation_ns,
        actions=encode_tensor(answer.actions),
        features=encode_tensor(answer.features),
        version=answer.version,
        epoch=answer.epoch,
        exec_ms=answer.exec_ms,
        queue_ms=answer.queue_ms,
        batch=answer.batch,
        remaining_ms=answer.remaining_ms,
    )
