"""The client's end of a lane: pictures to a policy server on this host without sending them.

`FrameLane` opens by itself beside the requests, and a request that cannot use it sends its pictures in
the message as before: on another host, as another user, with a full lane, with a server that has none.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import mmap
import os
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from hal.types import Frame
from protos.frames import FrameError, LaneMemory, LaneShape
from protos.ratchet.v1 import policy_pb2 as pb

log = logging.getLogger(__name__)

_RETRY_S = 5.0
#: What keeps a server from making a read of ours fail by shrinking the file.
_NEEDED_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_NOT_HERE = {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNIMPLEMENTED}


@dataclass(frozen=True, slots=True)
class Placed:
    """Pictures in their slots: what the request says of them. Give it back with `FrameLane.release`."""

    lane: int
    frames: tuple[pb.SharedFrame, ...]
    memory: LaneMemory


class FrameLane:
    """Shared memory with one policy server; use it within one running event loop.

    ``state`` says in a word or two how pictures travel and why; ``shared`` and ``sent`` count pictures.
    """

    def __init__(self, session: str) -> None:
        self._session = session
        self._lane = 0
        self._memory: LaneMemory | None = None
        self._free: list[int] = []
        self._task: asyncio.Task[None] | None = None
        self._not_before = 0.0
        self._way: tuple[Any, object] | None = None
        self._barred: object | None = None
        self.state = "in the message: not asked yet"
        self.shared = 0
        self.sent = 0

    @property
    def is_open(self) -> bool:
        """Whether pictures can be placed now, if slots are free."""
        return self._memory is not None

    def open(self, stub: Any, channel: object) -> None:
        """Begin to open over ``stub``, unless that is done, under way, or was refused on this ``channel``.

        Never waits, never raises. A lane that is lost is opened again over the same channel; a server
        that is not on this host isn't asked twice over one.
        """
        self._way = (stub, channel)
        self._open()

    def place(self, frames: Sequence[Frame]) -> Placed | None:
        """Copy frames into free slots; None (and counted as sent) when they must go in the message."""
        memory = self._memory
        if memory is None:
            self._open()
        if memory is None or len(self._free) < len(frames):
            self.sent += len(frames)
            return None
        slots = [self._free.pop() for _ in frames]
        try:
            placed = tuple(_place(memory, slot, frame) for slot, frame in zip(slots, frames, strict=True))
        except FrameError as error:  # of another size than the policy's: the server will say so
            log.warning("frame_lane.unfit reason=%s", error)
            self._free += slots
            self.sent += len(frames)
            return None
        self.shared += len(frames)
        return Placed(self._lane, placed, memory)

    def release(self, placed: Placed | None) -> None:
        """The request was answered or given up: its slots may be written again."""
        if placed is not None and placed.memory is self._memory:
            # To the end of the queue: a request that was given up may still be read by the server.
            self._free = [frame.slot for frame in reversed(placed.frames)] + self._free

    async def close(self) -> None:
        """Let go of the memory; the server takes it back. Safe to call twice."""
        self._way = None
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def _open(self) -> None:
        if self._way is None or self._task is not None or time.monotonic() < self._not_before:
            return
        stub, channel = self._way
        if channel is not self._barred:
            self._task = asyncio.get_running_loop().create_task(self._hold(stub, channel))

    async def _hold(self, stub: Any, channel: object) -> None:
        """Open the lane, and keep the call that it lives by."""
        call = stub.OpenFrames(pb.OpenFramesRequest(session=self._session))
        try:
            described = await call.read()
            if isinstance(described, pb.FrameLane):  # else it ended without one
                self._lane, memory = described.lane, map_lane(described)
                self._memory, self._free = memory, list(range(memory.shape.slots))
                self.state = "shared memory"
                log.info("frame_lane.opened bytes=%d", memory.shape.size)
                await call.read()  # returns or raises when the server ends the call
            self.state = "in the message: the server closed its shared memory"
        except FrameError as error:
            self._barred = channel
            self.state = f"in the message: {error}"
            log.info("frame_lane.unused reason=%s", error)
        except grpc.aio.AioRpcError as error:
            if error.code() in _NOT_HERE:
                self._barred = channel
            self.state = f"in the message: {(error.details() or error.code().name)[:200]}"
        finally:
            self._memory, self._free = None, []
            self._not_before = time.monotonic() + _RETRY_S
            if self._task is asyncio.current_task():
                self._task = None
            call.cancel()


def map_lane(lane: pb.FrameLane) -> LaneMemory:
    """Map the memory a server described. Raises FrameError unless it is there, sealed, and the server's."""
    shape = LaneShape(lane.slots, lane.slot_bytes)
    if lane.size != shape.size:
        raise FrameError(f"the server's lane of {lane.size} bytes does not match its own shape")
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        descriptor = os.open(f"/proc/{lane.pid}/fd/{lane.fd}", flags)
    except OSError as error:
        raise FrameError(f"the server's memory cannot be opened here ({error.strerror})") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size != shape.size:
            raise FrameError("the server's memory is not to be found on this host")
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _NEEDED_SEALS != _NEEDED_SEALS:
            raise FrameError("the server's memory is not sealed against shrinking")
        memory = LaneMemory(mmap.mmap(descriptor, shape.size), shape)
    except OSError as error:  # no memory file, or no room to map it
        raise FrameError(f"the server's memory cannot be mapped here ({error.strerror})") from error
    finally:
        os.close(descriptor)
    memory.check(lane.token)
    return memory


def _place(memory: LaneMemory, slot: int, frame: Frame) -> pb.SharedFrame:
    word = memory.write(slot, frame.image)
    height, width = frame.image.shape[:2]
    return pb.SharedFrame(
        camera=frame.camera, slot=slot, word=word, height=height, width=width, seq=frame.seq, t_ns=frame.t_ns
    )
