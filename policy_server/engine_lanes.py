"""The lanes that an engine process reads pictures from, where its server has checked that they may be.

The server passes a lane's descriptor once, and says when the lane is closed. What the client writes
meanwhile is no danger: the file is sealed against shrinking, is mapped here for reading only, and any
byte is a pixel. Whether it was one picture all the time is for the server to judge, by the slots' words.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
from collections.abc import Sequence

from policies.config import CameraShape
from policies.session import Pixels
from protos.frames import FrameError, LaneMemory, LaneShape

log = logging.getLogger(__name__)

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class EngineLanes:
    """Those that are mapped now, by their number; the server bounds how many there are."""

    def __init__(self) -> None:
        self._lanes: dict[int, LaneMemory] = {}

    def map(self, lane: int, slots: int, slot_bytes: int, fd: int) -> None:
        """Map one; one that cannot be is logged and not known afterwards. ``fd`` may be closed then."""
        try:
            shape = LaneShape(slots, slot_bytes)
            if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
                raise FrameError("the memory is not sealed against shrinking")
            memory = mmap.mmap(fd, shape.size, mmap.MAP_SHARED, mmap.PROT_READ)
            self._lanes[lane] = LaneMemory(memory, shape)
        except (OSError, ValueError) as error:  # no room, or not what was said
            log.warning("engine_lanes.not_mapped lane=%d reason=%s", lane, error)

    def forget(self, lane: int) -> None:
        """Let go of one, known or not."""
        self._lanes.pop(lane, None)

    def images(
        self, lane: int, slots: Sequence[int], cameras: Sequence[CameraShape]
    ) -> dict[str, Pixels] | None:
        """Views of one observation, uint8 (1, H, W, 3) by camera; None of a lane that is not known.

        Raises FrameError for a slot that is not there.
        """
        memory = self._lanes.get(lane)
        if memory is None:
            return None
        return {
            camera.name: memory.view(slot, camera.height, camera.width)[None]
            for camera, slot in zip(cameras, slots, strict=True)
        }
