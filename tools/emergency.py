"""The shortest way to an e-stop on this machine: one word in memory shared with the bus process.

Imports nothing heavy, so that `ratchet stop --emergency` acts before gRPC is even loaded. The layout is that
of ``runtime.bus_records.BusWords``; a test compares them.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path

DEFAULT_RUN_DIR = Path("/run/ratchet")
_WORDS = "follower.words"
_COUNT = struct.Struct("<q")
_MIN_BYTES = 64
_SILENT_NS = 1_000_000_000


def word_files(run_dir: Path | None, address: str | None) -> list[Path]:
    """Where the words of the robot that is named like this may lie; the last is the service's default.

    ``run_dir`` is a bench's (`--dir`), ``address`` a gRPC door: beside its unix socket, or nowhere if the
    robot is reached over the network.
    """
    if run_dir is not None:
        return [run_dir / "run" / _WORDS]
    if address is None:
        return [DEFAULT_RUN_DIR / _WORDS]
    if address.startswith("unix:"):
        beside = Path(address.removeprefix("unix:").removeprefix("//")).parent
        return [beside / _WORDS, beside / "run" / _WORDS]
    return []


def beats(path: Path) -> bool:
    """Whether a bus process looks at these words: it leaves the time of each of its cycles there."""
    with path.open("rb") as file:
        _, heartbeat_ns = struct.unpack("<2q", file.read(16))
    return 0 <= time.monotonic_ns() - int(heartbeat_ns) < _SILENT_NS


def raise_word(run_dir: Path | None = None, address: str | None = None) -> Path | None:
    """Add one to the robot's e-stop word: its bus process stops the arm in its next cycle, and latches.

    The file that was written, or None when the robot is not on this machine, never ran here, or does not
    let this user write. Costs a few system calls.
    """
    for path in word_files(run_dir, address):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            if os.fstat(descriptor).st_size < _MIN_BYTES:
                continue
            with mmap.mmap(descriptor, mmap.PAGESIZE) as page:
                (raised,) = _COUNT.unpack_from(page, 0)
                _COUNT.pack_into(page, 0, raised + 1)
            return path
        finally:
            os.close(descriptor)
    return None
