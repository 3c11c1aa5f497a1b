"""Watching a running robot from outside: every tick, every bus cycle, and what each process costs."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from runtime.bus_records import STATE, BusFiles
from runtime.loop_stats import TICK, tick_reader
from runtime.ring import RingReader

_POLL_S = 0.25
_CLOCK_HZ = os.sysconf("SC_CLK_TCK")
_POLICIES = {os.SCHED_OTHER: "OTHER", os.SCHED_FIFO: "FIFO", os.SCHED_RR: "RR", os.SCHED_BATCH: "BATCH"}
if hasattr(os, "SCHED_IDLE"):
    _POLICIES[os.SCHED_IDLE] = "IDLE"

Ints = npt.NDArray[np.int64]


@dataclass(slots=True)
class Seen:
    """What went by: ``ticks`` as `runtime.loop_stats.TICK`; of each bus cycle its time and lateness, ns.

    ``written`` is when the goal made of a waypoint first went to the motors, by the waypoint's number.
    ``lost`` counts records that were overwritten before they were read.
    """

    ticks: npt.NDArray[Any]
    cycle_ns: Ints
    cycle_late_ns: Ints
    written: dict[int, int] = field(default_factory=dict)
    lost: int = 0


class Watch:
    """Reads along in a thread of its own; use as a context, then take ``seen``. Raises RingError."""

    def __init__(self, run_dir: Path, arm: str = "follower") -> None:
        self._ticks = tick_reader(run_dir)
        self._bus = RingReader(BusFiles(run_dir, arm).state, STATE)
        self._tick_index, self._bus_index = self._ticks.head - 1, self._bus.head - 1
        self._rows: list[npt.NDArray[Any]] = [np.zeros(0, TICK)]
        self._cycles: list[Ints] = [np.zeros((0, 2), np.int64)]
        self._written: dict[int, int] = {}
        self._last_seq = -1
        self._lost = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def seen(self, begin_ns: int, end_ns: int) -> Seen:
        """Ticks and cycles between two times. Call it after the context was left."""
        rows, cycles = np.concatenate(self._rows), np.concatenate(self._cycles)
        inside = (rows["deadline_ns"] >= begin_ns) & (rows["deadline_ns"] < end_ns)
        cycles = cycles[(cycles[:, 0] >= begin_ns) & (cycles[:, 0] < end_ns)]
        return Seen(rows[inside], cycles[:, 0], cycles[:, 1], self._written, self._lost)

    def _run(self) -> None:
        while not self._stop.wait(_POLL_S):
            self._look()
        self._look()

    def _look(self) -> None:
        first, rows = self._ticks.since(self._tick_index)
        self._lost += first - self._tick_index - 1
        self._tick_index = first + len(rows) - 1
        self._rows.append(rows)
        first, cycles = self._bus.since(self._bus_index)
        self._lost += first - self._bus_index - 1
        self._bus_index = first + len(cycles) - 1
        self._cycles.append(np.stack([cycles["t_ns"], cycles["late_ns"]], axis=1))
        for seq, written_ns in zip(
            cycles["command_seq"].tolist(), cycles["written_ns"].tolist(), strict=True
        ):
            if seq != self._last_seq:
                self._written.setdefault(seq, written_ns)
                self._last_seq = seq


# --- processes -----------------------------------------------------------------------------------


def robot_processes(service: int) -> dict[str, int]:
    """The processes of a simulated robot by role: ``service`` and what it started, the bench apart."""
    found = {"service": service}
    benches = 0
    for pid, parent in _tree(service):
        words = _command(pid)
        if "policy_server.engine" in words:
            found[f"policy engine {pid}"] = pid
        elif "hal.bench.process" in words or (parent in found.values() and parent != service):
            found[f"bench{benches or ''}"] = pid
            benches += 1
        elif "runtime.bus_process" in words:
            found["leader bus" if "leader" in words else "follower bus"] = pid
        elif "runtime.camera_process" in words:
            found["cameras"] = pid
        elif "policy_server" in words:
            found["policy server"] = pid
    return found


def cpu_s(pid: int) -> float:
    """Processor time a process has used, s; 0 when it is gone."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(after_name[11]) + int(after_name[12])) / _CLOCK_HZ


def stolen_s() -> float:
    """Processor time that the machine's host kept for others, s."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    return int(fields[8]) / _CLOCK_HZ


def scheduling(processes: Mapping[str, int]) -> dict[str, str]:
    """How each process's threads are scheduled, such as ``1 x FIFO 10, 23 x OTHER``."""
    return {
        name: ", ".join(f"{n} x {how}" for how, n in _threads(pid).items()) for name, pid in processes.items()
    }


def _threads(pid: int) -> Counter[str]:
    counts: Counter[str] = Counter()
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            thread = int(task)
            policy = os.sched_getscheduler(thread) & ~os.SCHED_RESET_ON_FORK
            priority = os.sched_getparam(thread).sched_priority
            nice = os.getpriority(os.PRIO_PROCESS, thread)
            detail = f" {priority}" if priority else f" nice {nice}" if nice else ""
            counts[_POLICIES.get(policy, str(policy)) + detail] += 1
    return counts


def _tree(root: int) -> list[tuple[int, int]]:
    """(pid, parent) of everything below ``root``, parents first."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{entry}/stat").read_text()
                parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry))
    below: list[tuple[int, int]] = []
    waiting = [root]
    while waiting:
        parent = waiting.pop(0)
        below += [(pid, parent) for pid in parents.get(parent, [])]
        waiting += parents.get(parent, [])
    return below


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
