"""One arm of `ratchet bench server`: asks a policy server at its rate, and says how it fared, as JSON.

Started with one JSON argument, `Arm`. Says "ready", waits for a line on stdin, runs, prints its figures.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import grpc
import numpy as np
import uvloop

from hal.types import Frame
from protos.codec import encode_image, encode_tensor
from protos.ratchet.v1 import policy_pb2 as pb
from protos.ratchet.v1 import policy_pb2_grpc
from runtime.frame_lane import FrameLane, Placed
from tools.errors import UsageError

#: How a picture travels.
WAYS = ("stream", "shared", "message")
_PICTURES = 4
_OPEN_S = 10.0
_LIMIT_MIB = 64


@dataclass(frozen=True, slots=True)
class Arm:
    """What one client does: ``rate_hz`` requests a second, each with ``budget_ms``, ``depth`` at a time."""

    address: str
    session: str
    way: str
    seconds: float
    rate_hz: float
    budget_ms: float
    depth: int = 1
    cameras: tuple[str, ...] = ("front", "wrist")
    height: int = 480
    width: int = 640

    def argument(self) -> str:
        """As the process takes it."""
        return json.dumps(asdict(self))


@dataclass(slots=True)
class Fared:
    """Milliseconds of each answer, sizes of the batches they came from, requests not answered by status."""

    answers_ms: list[float] = field(default_factory=list)
    exec_ms: list[float] = field(default_factory=list)
    batches: Counter[int] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)


class Asker:
    """Builds requests and sends them one way or the other; `open` before the first."""

    def __init__(self, arm: Arm) -> None:
        self._arm = arm
        limit = ("grpc.max_send_message_length", _LIMIT_MIB * 2**20)
        self._channel = grpc.aio.insecure_channel(arm.address, options=[limit])
        self._stub = policy_pb2_grpc.PolicyServiceStub(self._channel)
        self._lane = FrameLane(arm.session)
        rng = np.random.default_rng(abs(hash(arm.session)) % 2**32)
        shape = (_PICTURES, arm.height, arm.width, 3)
        self._pictures = {c: rng.integers(0, 256, shape, dtype=np.uint8) for c in arm.cameras}
        self._state = encode_tensor(rng.normal(size=6).astype(np.float32))
        self._sent = 0
        self._stream: Any = None

    @property
    def pictures(self) -> dict[str, np.ndarray]:
        """What is sent in turn: uint8 (4, H, W, 3) by camera."""
        return self._pictures

    async def open(self) -> str:
        """Connect, and open the shared memory; returns how pictures will travel."""
        await asyncio.wait_for(self._channel.channel_ready(), _OPEN_S)
        if self._arm.way == "message":
            return "in the message"
        self._lane.open(self._stub, self._channel)
        deadline = time.monotonic() + _OPEN_S
        while not self._lane.is_open and time.monotonic() < deadline:  # noqa: ASYNC110 (polled)
            await asyncio.sleep(0.01)
        return self._lane.state

    async def ask(self) -> pb.InferResponse:
        """One request and its answer. Raises AioRpcError."""
        self._sent += 1
        number = self._sent % _PICTURES
        now = time.monotonic_ns()
        frames = [Frame(c, self._sent, now, pictures[number]) for c, pictures in self._pictures.items()]
        placed: Placed | None = self._lane.place(frames) if self._arm.way != "message" else None
        request = pb.InferRequest(
            request_id=self._sent,
            session=self._arm.session,
            tick=self._sent,
            observation_ns=now,
            state=self._state,
            deadline_ms=self._arm.budget_ms,
        )
        if placed is not None:
            request.lane = placed.lane
            request.frames.extend(placed.frames)
        else:
            request.images.extend(encode_image(f.camera, f.image, f.seq, f.t_ns) for f in frames)
        try:
            return await (self._streamed(request) if self._arm.way == "stream" else self._unary(request))
        finally:
            self._lane.release(placed)

    async def _unary(self, request: pb.InferRequest) -> pb.InferResponse:
        response: pb.InferResponse = await self._stub.Infer(request, timeout=self._arm.budget_ms / 1e3)
        return response

    async def _streamed(self, request: pb.InferRequest) -> pb.InferResponse:
        if self._stream is None:
            self._stream = self._stub.InferStream()
        await self._stream.write(request)
        response: pb.InferResponse = await self._stream.read()
        if response.status:
            raise UsageError(f"the policy server answered: {response.reason}")
        return response

    async def close(self) -> None:
        """Give everything back."""
        if self._stream is not None:
            self._stream.cancel()
        await self._lane.close()
        await self._channel.close(None)


async def run(asker: Asker, arm: Arm) -> Fared:
    """Ask until the time is over; a request that would overlap ``depth`` others is skipped, not queued."""
    fared = Fared()
    begun = time.monotonic()

    async def one(first: float) -> None:
        period = arm.depth / arm.rate_hz
        due = begun + first
        while (now := time.monotonic()) < begun + arm.seconds:
            due += max(0.0, (now - due) // period) * period
            if due > now:
                await asyncio.sleep(due - now)
            due += period
            sent = time.perf_counter()
            try:
                response = await asker.ask()
            except grpc.aio.AioRpcError as error:
                fared.missed[error.code().name] += 1
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    return
                continue
            fared.answers_ms.append((time.perf_counter() - sent) * 1e3)
            fared.exec_ms.append(response.exec_ms)
            fared.batches[response.batch] += 1

    await asyncio.gather(*(one(n / arm.rate_hz) for n in range(arm.depth)))
    return fared


async def _main(arm: Arm) -> None:
    asker = Asker(arm)
    way = await asker.open()
    _say("ready")
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    fared = await run(asker, arm)
    await asker.close()
    _say(
        json.dumps(
            {
                "way": way,
                "answers_ms": fared.answers_ms,
                "exec_ms": fared.exec_ms,
                "batches": fared.batches,
                "missed": fared.missed,
            }
        )
    )


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    uvloop.run(_main(Arm(**json.loads(sys.argv[1]))))
