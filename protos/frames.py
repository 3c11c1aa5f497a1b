"""Pictures in shared memory: where everything stands in a lane, and how a torn picture is noticed.

A lane is memory that the policy server makes for one client on the same host and seals against
being resized, so that neither side can take it away from under the other. It holds a header page
with the server's token, then slots of one picture each. Only the client writes, only into slots of
which no request is under way. A slot's word is odd while it is written and rises by two with each
picture; a request says which word it means, and the server looks at the word before and after the
picture is read.
"""

from __future__ import annotations

import mmap
import struct
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

TOKEN_BYTES = 32
PAGE = 4096
#: Bytes between a slot's word and its picture: a cache line.
PICTURE_OFFSET = 64
#: Bounds of what either side maps, whatever the other says.
MAX_SLOTS = 64
MAX_SLOT_BYTES = 64 * 2**20

_HEADER = struct.Struct("<8sQQ32s")
_MAGIC = b"RCTLANE1"
_BARRIER = threading.Lock()

Pixels = npt.NDArray[np.uint8]


class FrameError(ValueError):
    """A lane or a picture in it is not what was agreed: one line, what and where."""


@dataclass(frozen=True, slots=True)
class LaneShape:
    """How many slots, and the bytes of the largest picture that fits one; raises FrameError out of bounds."""

    slots: int
    slot_bytes: int

    def __post_init__(self) -> None:
        if not (1 <= self.slots <= MAX_SLOTS and 1 <= self.slot_bytes <= MAX_SLOT_BYTES):
            raise FrameError(
                f"a lane of {self.slots} slots of {self.slot_bytes} bytes is out of bounds; "
                f"at most {MAX_SLOTS} of {MAX_SLOT_BYTES}"
            )

    @property
    def stride(self) -> int:
        """Bytes from one slot to the next; whole pages."""
        return -(-(PICTURE_OFFSET + self.slot_bytes) // PAGE) * PAGE

    @property
    def size(self) -> int:
        """Bytes of the whole lane."""
        return PAGE + self.slots * self.stride


class LaneMemory:
    """A mapped lane. The mapping lives as long as this object, or as an array taken from it."""

    def __init__(self, memory: mmap.mmap, shape: LaneShape) -> None:
        """Raises FrameError when ``memory`` is not of the shape's size."""
        if len(memory) != shape.size:
            raise FrameError(f"the lane has {len(memory)} bytes; its shape makes {shape.size}")
        self.shape = shape
        self._header = memory
        self._words: list[npt.NDArray[np.uint64]] = []
        self._pictures: list[Pixels] = []
        for slot in range(shape.slots):
            at = PAGE + slot * shape.stride
            self._words.append(np.frombuffer(memory, "<u8", 1, at))
            self._pictures.append(np.frombuffer(memory, np.uint8, shape.slot_bytes, at + PICTURE_OFFSET))

    def sign(self, token: bytes) -> None:
        """Write the header; the server does, before it tells anybody of the lane."""
        header = _HEADER.pack(_MAGIC, self.shape.slots, self.shape.slot_bytes, token)
        self._header[: len(header)] = header

    def check(self, token: bytes) -> None:
        """Raise FrameError unless the header was written for this shape by who knows ``token``."""
        wanted = _HEADER.pack(_MAGIC, self.shape.slots, self.shape.slot_bytes, token)
        if len(token) != TOKEN_BYTES or self._header[: len(wanted)] != wanted:
            raise FrameError("the memory found is not the lane that the server made")

    def write(self, slot: int, image: npt.NDArray[Any]) -> int:
        """Put a uint8 (H, W, 3) picture into a slot; returns the slot's new word. Raises FrameError."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.nbytes > self.shape.slot_bytes:
            raise FrameError(f"a picture {image.dtype} {image.shape} does not fit the lane's slots")
        word = self._words[slot]
        writing = int(word[0]) | 1
        word[0] = writing
        barrier()
        np.copyto(self._pictures[slot][: image.nbytes].reshape(image.shape), image)
        barrier()
        word[0] = writing + 1
        return writing + 1

    def read(self, slot: int, word: int, out: Pixels) -> None:
        """Copy a picture into ``out``, contiguous uint8 (H, W, 3).

        Raises FrameError when the slot does not hold the picture of that ``word``, or ceased to during
        the copy; ``out`` is then rubbish. ``slot`` and the size of ``out`` must have been checked.
        """
        self.begin(slot, word)
        np.copyto(out.reshape(-1), self._pictures[slot][: out.nbytes])
        self.end(slot, word)

    def begin(self, slot: int, word: int) -> None:
        """Before a picture is read. Raises FrameError unless the slot holds the one of that ``word``."""
        before = int(self._words[slot][0])
        barrier()
        if before != word or word % 2:
            raise FrameError(f"slot {slot} holds picture {before}, not {word}: it was reused too soon")

    def end(self, slot: int, word: int) -> None:
        """After it. Raises FrameError when the picture changed since `begin`: what was read is rubbish."""
        barrier()
        if int(self._words[slot][0]) != word:
            raise FrameError(f"slot {slot} was written while it was read")

    def view(self, slot: int, height: int, width: int) -> Pixels:
        """A picture where it lies, uint8 (height, width, 3); it may change at any time.

        Raises FrameError when there is no such slot, or it is smaller.
        """
        size = height * width * 3
        if not (0 <= slot < self.shape.slots and size <= self.shape.slot_bytes):
            raise FrameError(f"slot {slot} of {size} bytes is outside the lane")
        return self._pictures[slot][:size].reshape(height, width, 3)


def barrier() -> None:
    """No load or store moves across this call.

    A lock's taking and giving back are such a barrier on every machine CPython runs on; x86 needs
    none for this, ARM boards do.
    """
    with _BARRIER:
        pass
