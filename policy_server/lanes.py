"""The shared memory that clients on this host put their pictures into: made, counted, taken back.

A lane belongs to one open call. When that ends, because the client closed it, was killed or fell
silent for too long, the lane is gone from the table; requests that still read it keep its memory alive
until they are done.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import secrets
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt

from policy_server.errors import LaneError, OverloadedError
from policy_server.spec import IOSpec
from protos.frames import TOKEN_BYTES, FrameError, LaneMemory, LaneShape
from protos.ratchet.v1 import policy_pb2 as pb

log = logging.getLogger(__name__)

#: Pictures of each camera that a lane has room for: one being answered, and some whose answers were
#: given up and may still be being read.
DEPTH = 4
_PER_SESSION = 2  # one may be left over from a connection that is not known to be dead yet
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class LaneReader(Protocol):
    """Another process that reads pictures where they lie; one of its own, started by this server."""

    def map_lane(self, lane: int, shape: LaneShape, fd: int) -> None:
        """Have it map a lane. Raises PolicyError when it is gone."""

    def forget_lane(self, lane: int) -> None:
        """Have it let go of one, when it is done with what it reads; never waits, never raises."""


class Lane:
    """Sealed memory, mapped here and open at ``/proc/<pid>/fd/<fd>`` for whoever may read this process."""

    def __init__(self, session: str, shape: LaneShape) -> None:
        self.id = secrets.randbits(64)
        self.session = session
        self.used_ns = time.monotonic_ns()
        self._token = secrets.token_bytes(TOKEN_BYTES)
        self._closed = False
        self._readers: weakref.WeakSet[LaneReader] = weakref.WeakSet()
        self._fd = os.memfd_create("ratchet-frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self._fd, shape.size)
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, _SEALS)
            self.memory = LaneMemory(mmap.mmap(self._fd, shape.size), shape)
        except BaseException:
            os.close(self._fd)
            raise
        self.memory.sign(self._token)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.memory.shape.size

    def describe(self) -> pb.FrameLane:
        """What the client needs to find the memory and to know that it is this."""
        return pb.FrameLane(
            lane=self.id,
            pid=os.getpid(),
            fd=self._fd,
            size=self.size,
            slots=self.memory.shape.slots,
            slot_bytes=self.memory.shape.slot_bytes,
            token=self._token,
        )

    def lend(self, reader: LaneReader) -> bool:
        """See that a reader has it mapped; False when it is closed. Raises what the reader does."""
        if self._closed:
            return False
        if reader not in self._readers:
            reader.map_lane(self.id, self.memory.shape, self._fd)
            self._readers.add(reader)
        return True

    def close(self) -> None:
        """Take the door away; the mapping goes with its last reader."""
        self._closed = True
        os.close(self._fd)
        for reader in list(self._readers):
            reader.forget_lane(self.id)


class SharedPicture:
    """A picture that is still in its lane; its place and size have been checked."""

    __slots__ = ("_word", "lane", "shape", "slot")

    def __init__(self, lane: Lane, slot: int, word: int, shape: tuple[int, int, int]) -> None:
        self.lane, self.slot, self._word, self.shape = lane, slot, word, shape

    def copy_to(self, out: npt.NDArray[np.uint8]) -> None:
        """Copy it into ``out``, contiguous (H, W, 3). Raises LaneError when it changed meanwhile."""
        with _told():
            self.lane.memory.read(self.slot, self._word, out)

    def begin(self) -> None:
        """Before it is read where it lies. Raises LaneError when it is not there."""
        with _told():
            self.lane.memory.begin(self.slot, self._word)

    def end(self) -> None:
        """After that. Raises LaneError when it changed meanwhile: what came of it is rubbish."""
        with _told():
            self.lane.memory.end(self.slot, self._word)


@contextmanager
def _told() -> Iterator[None]:
    """The client learns what it did wrong."""
    try:
        yield
    except FrameError as error:
        raise LaneError(f"{error}; leave a slot alone until its request is answered") from error


class Lanes:
    """All lanes, bounded in number and bytes. Owned by the event loop."""

    def __init__(self, max_lanes: int, max_bytes: int) -> None:
        self._max_lanes = max_lanes
        self._max_bytes = max_bytes
        self._lanes: dict[int, Lane] = {}

    def __len__(self) -> int:
        return len(self._lanes)

    @property
    def size(self) -> int:
        """Bytes of all lanes."""
        return sum(lane.size for lane in self._lanes.values())

    @contextmanager
    def lane(self, session: str, spec: IOSpec) -> Iterator[Lane]:
        """A lane with room for `DEPTH` pictures of each of the policy's cameras, until the context is left.

        Raises OverloadedError when there are too many, LaneError when no memory can be had.
        """
        shape = _shape(spec)
        if sum(lane.session == session for lane in self._lanes.values()) >= _PER_SESSION:
            raise OverloadedError(f"session {session!r} has shared memory already; close that first")
        if len(self) >= self._max_lanes or self.size + shape.size > self._max_bytes:
            raise OverloadedError(
                f"{len(self)} clients share {self.size >> 20} MiB already; send pictures in messages"
            )
        try:
            lane = Lane(session, shape)
        except OSError as error:
            raise LaneError(f"no shared memory: {error.strerror}; send pictures in messages") from error
        self._lanes[lane.id] = lane
        log.info("lanes.opened session=%r bytes=%d lanes=%d", session, lane.size, len(self))
        try:
            yield lane
        finally:
            del self._lanes[lane.id]
            lane.close()
            log.info("lanes.closed session=%r lanes=%d", session, len(self))

    def picture(self, lane_id: int, frame: pb.SharedFrame, height: int, width: int) -> SharedPicture:
        """The picture a request speaks of, its place checked and no byte of it read. Raises LaneError."""
        lane = self._lanes.get(lane_id)
        if lane is None:
            raise LaneError("the request's pictures are in a lane that is not open; open one again")
        shape = (height, width, 3)
        name = f"image {frame.camera[:64]!r}"
        if (frame.height, frame.width) != (height, width):
            raise LaneError(f"{name} is {frame.width}×{frame.height}; {width}×{height} is expected")
        if frame.slot >= lane.memory.shape.slots or height * width * 3 > lane.memory.shape.slot_bytes:
            raise LaneError(
                f"{name} is said to be in slot {frame.slot}; the lane has {lane.memory.shape.slots} slots "
                f"of {lane.memory.shape.slot_bytes} bytes"
            )
        lane.used_ns = time.monotonic_ns()
        return SharedPicture(lane, frame.slot, frame.word, shape)


def is_local(peer: str) -> bool:
    """Whether a gRPC peer name is of this host: a unix socket or the loopback interface."""
    return unquote(peer).startswith(("unix:", "ipv4:127.", "ipv6:[::1]:", "ipv6:[::ffff:127."))


def _shape(spec: IOSpec) -> LaneShape:
    largest = max((camera.height * camera.width * 3 for camera in spec.cameras), default=0)
    try:
        return LaneShape(DEPTH * len(spec.cameras), largest)
    except FrameError as error:
        raise LaneError(f"{error}; send pictures in messages") from error
