"""A ring of records in shared memory: one writer, any number of readers, nobody waits.

The file is made by the process that outlives the others (``create_ring``), so a writer may die and
come back without its readers noticing. Each slot carries a sequence word: odd while it is written,
2·index + 2 once record ``index`` is complete. A reader copies, then looks at the word again; what
changed underneath is thrown away. No time budget is involved: however late a reader is, it never
returns a torn record.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from runtime.errors import RingError

_MAGIC = 0x31474E4952544352  # "RCTRING1"
_HEADER = np.dtype([("magic", "<u8"), ("slot_bytes", "<u8"), ("capacity", "<u8"), ("layout", "<u8")])
_HEAD_OFFSET = 64
_SLOTS_OFFSET = 4096
_RETRIES = 16


@intrinsic
def _fence(_context: Any) -> Any:
    """One seq_cst fence: x86 keeps stores in order by itself, ARM boards do not."""

    def generate(_target: Any, builder: ir.IRBuilder, _signature: Any, _arguments: Any) -> ir.Constant:
        builder.fence("seq_cst")
        return ir.Constant(ir.IntType(8).as_pointer(), None)

    return types.void(), generate


@numba.njit(cache=True, nogil=True)
def memory_fence() -> None:
    """No load or store moves across this call."""
    _fence()


def _slot_dtype(record: np.dtype[Any]) -> np.dtype[Any]:
    """A slot: its sequence word, then the record; padded so that the words stay 8-byte aligned."""
    padded = -(-(8 + record.itemsize) // 64) * 64
    return np.dtype(
        {"names": ["word", "body"], "formats": ["<u8", record], "offsets": [0, 8], "itemsize": padded}
    )


def _layout(record: np.dtype[Any]) -> int:
    """Fingerprint of a record's fields, types and offsets."""
    text = repr((record.descr, record.itemsize))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def frame_dtype(height: int, width: int) -> np.dtype[Any]:
    """Record of a camera ring: one uint8 RGB picture with its stamps."""
    stamps = [("seq", "<i8"), ("t_ns", "<i8"), ("repeated", "?"), ("driver_stamp", "?")]
    return np.dtype([*stamps, ("image", "u1", (height, width, 3))])


def create_ring(path: Path, record: np.dtype[Any], capacity: int) -> None:
    """Make an empty ring file of ``capacity`` ≥ 2 records, replacing whatever was there, in one step.

    Raises RingError when the directory cannot be written.
    """
    if capacity < 2:
        raise ValueError(f"a ring needs at least 2 records, not {capacity}")
    slot = _slot_dtype(record)
    header = np.array((_MAGIC, slot.itemsize, capacity, _layout(record)), dtype=_HEADER)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(header.tobytes())
            file.truncate(_SLOTS_OFFSET + slot.itemsize * capacity)
        os.replace(partial, path)
    except OSError as error:
        raise RingError(
            f"cannot make the ring {path}: {error.strerror}", "check the run directory and its space"
        ) from error


class _Ring:
    """The mapped file, checked against the record its user expects."""

    def __init__(self, path: Path, record: np.dtype[Any], *, writable: bool) -> None:
        self.path = path
        self._map = map_file(path, writable=writable)
        if len(self._map) < _SLOTS_OFFSET:
            raise RingError(f"{path} is not a ring", "start the runtime again, it makes its rings afresh")
        header = np.frombuffer(self._map, dtype=_HEADER, count=1)[0]
        slot = _slot_dtype(record)
        size = _SLOTS_OFFSET + slot.itemsize * int(header["capacity"])
        sound = int(header["magic"]) == _MAGIC and int(header["slot_bytes"]) == slot.itemsize
        if not sound or int(header["layout"]) != _layout(record) or size > len(self._map):
            raise RingError(
                f"the ring {path} holds other records than expected",
                "stop every Ratchet process of another version, then start the runtime again",
            )
        self.capacity = int(header["capacity"])
        self._head = np.frombuffer(self._map, dtype="<u8", count=1, offset=_HEAD_OFFSET)
        self._slots = np.frombuffer(self._map, dtype=slot, count=self.capacity, offset=_SLOTS_OFFSET)
        self._words = self._slots["word"]
        self._bodies = self._slots["body"]

    @property
    def head(self) -> int:
        """How many records were ever written."""
        return int(self._head[0])


class RingWriter(_Ring):
    """The one writer of a ring; carries on where a predecessor stopped. Raises RingError."""

    def __init__(self, path: Path, record: np.dtype[Any]) -> None:
        super().__init__(path, record, writable=True)
        self._next = self.head
        self.record: npt.NDArray[Any] = np.zeros((), dtype=record)

    def push(self) -> int:
        """Publish what stands in ``record`` (a zero-dimensional structured array); its index."""
        with_index = self._next
        slot = with_index % self.capacity
        self._words[slot] = 2 * with_index + 1
        memory_fence()
        self._bodies[slot] = self.record
        memory_fence()
        self._words[slot] = 2 * with_index + 2
        memory_fence()
        self._next = with_index + 1
        self._head[0] = self._next
        return with_index


class RingReader(_Ring):
    """Reads a ring without ever holding its writer up; every array returned is a copy. Raises RingError."""

    def __init__(self, path: Path, record: np.dtype[Any]) -> None:
        super().__init__(path, record, writable=False)

    def latest(self) -> tuple[int, Any] | None:
        """Index and copy of the newest record, or None while there is none."""
        for _ in range(_RETRIES):
            head = self.head
            if head == 0:
                return None
            memory_fence()
            index = head - 1
            record = self._read(index)
            if record is not None:
                return index, record
        return None

    def since(self, index: int) -> tuple[int, npt.NDArray[Any]]:
        """Records after ``index`` (−1: all still there), oldest first, and the index of the first one.

        A first index above ``index`` + 1 means that the records between were overwritten.
        """
        head = self.head
        memory_fence()
        first = max(index + 1, head - self.capacity, 0)
        indices = np.arange(first, max(head, first), dtype=np.uint64)
        slots = (indices % np.uint64(self.capacity)).astype(np.intp)
        expected = indices * np.uint64(2) + np.uint64(2)
        bodies = self._bodies[slots]
        memory_fence()
        whole = self._words[slots] == expected
        # The writer overtakes from the oldest end: keep the run of whole records up to the newest.
        broken = np.flatnonzero(~whole)
        start = int(broken[-1]) + 1 if broken.size else 0
        return first + start, bodies[start:]

    def at(self, index: int) -> Any | None:
        """Copy of record ``index``; None when it was overwritten or is not written yet."""
        return self._read(index) if index >= 0 else None

    def _read(self, index: int) -> Any | None:
        slot = index % self.capacity
        word = 2 * index + 2
        if int(self._words[slot]) != word:
            return None
        memory_fence()
        record = self._bodies[slot].copy()
        memory_fence()
        return record if int(self._words[slot]) == word else None


def map_file(path: Path, *, writable: bool) -> mmap.mmap:
    """Map an existing file shared. Raises RingError when it is missing or may not be opened."""
    try:
        descriptor = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
    except OSError as error:
        raise RingError(
            f"cannot open {path}: {error.strerror}", "is the runtime that makes it running?"
        ) from error
    try:
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        return mmap.mmap(descriptor, 0, access=access)
    except (OSError, ValueError) as error:
        raise RingError(f"cannot map {path}: {error}", "start the runtime again") from error
    finally:
        os.close(descriptor)
