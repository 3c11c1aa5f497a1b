"""What a process, alone or with its children, holds: from /proc."""

from __future__ import annotations

import contextlib
from pathlib import Path


def family(pid: int) -> list[int]:
    """``pid`` and every process that descends from it and still lives."""
    found, pending = [], [pid]
    while pending:
        one = pending.pop()
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{one}/task").iterdir():
                pending += [int(child) for child in (task / "children").read_text().split()]
            found.append(one)
    return found


def held_mb(pid: int) -> float:
    """Memory of the family in MiB: what its members share is counted once (proportional set size)."""
    total = 0
    for one in family(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total / 1024


def resident_mb(pid: int) -> float:
    """Resident memory of that process alone in MiB, what it shares included. Raises OSError without it."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def open_descriptors(pid: int) -> int:
    """Open files and sockets of the family."""
    total = 0
    for one in family(pid):
        with contextlib.suppress(OSError):
            total += sum(1 for _ in Path(f"/proc/{one}/fd").iterdir())
    return total
