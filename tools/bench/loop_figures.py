"""From what was seen of the loop to its figures: lateness and its causes, pictures to goals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tools.bench.common import quantile
from tools.bench.floor import Stall
from tools.bench.watching import Seen

LATE_MS = 1.0
MACHINE = b"machine"
PERIOD_NS = 33_333_333
DEFINITIONS = {
    "lateness_ms": "from a tick's deadline on the fixed 30 Hz grid to its first instruction; every tick",
    "missed": "deadlines at which no tick ran",
    "photon_to_goal_ms": (
        "policy, learning: from the newest picture a chunk was computed from to the first goal of that chunk "
        "written to the motors; idle, recording: as frame_to_goal_ms"
    ),
    "frame_to_goal_ms": "from the newest picture a tick saw to that tick's goal written to the motors",
    "cpu_percent": "of one processor, the robot's processes; the simulated arm and cameras apart",
    "late_causes": (
        "of ticks later than 1 ms: work (of the tick before), queue (runnable, not run), callback (event "
        "loop busy), interpreter (another thread held it), kernel (woken late), machine (nothing could run "
        "on one of the processors then, whatever its priority)"
    ),
    "machine": "an idle thread above every other priority on each processor: what nothing here can do better",
    "peers": "two loops that only keep time, beside each load, against their own ideal grid",
}


def timing(seen: Seen, seconds: float, stalled: Sequence[Stall] = ()) -> dict[str, Any]:
    """The figures of one load, from what was seen of it in ``seconds``; ``stalled``: of the machine."""
    ticks = blame_machine(seen.ticks, stalled)
    late = _ms(ticks["late_ns"])
    cycle_late = _ms(seen.cycle_late_ns)
    to_goal = frame_to_goal_ms(ticks, seen.written)
    photon = chunk_to_goal_ms(ticks, seen.written) or to_goal
    return {
        "ticks": len(ticks),
        "missed": int(ticks["skipped"].sum()),
        "missed_in_stalls": int(ticks["skipped"][ticks["cause"] == MACHINE].sum()),
        "lateness_ms_p50": quantile(late, 50),
        "lateness_ms_p99": quantile(late, 99),
        "lateness_ms_p999": quantile(late, 99.9),
        "lateness_ms_max": round(max(late, default=0.0), 4),
        "late_causes": late_causes(ticks),
        "exec_ms_p50": quantile(_ms(ticks["exec_ns"]), 50),
        "exec_ms_p99": quantile(_ms(ticks["exec_ns"]), 99),
        "collections": int((ticks["collected_ns"] > 0).sum()),
        "collection_ms_max": round(max(_ms(ticks["collected_ns"]), default=0.0), 4),
        "bus_hz": round(len(seen.cycle_ns) / seconds, 2),
        "bus_late_ms_p99": quantile(cycle_late, 99),
        "bus_late_ms_max": round(max(cycle_late, default=0.0), 4),
        "photon_to_goal_ms_p50": quantile(photon, 50),
        "photon_to_goal_ms_p99": quantile(photon, 99),
        "frame_to_goal_ms_p50": quantile(to_goal, 50),
        "frame_to_goal_ms_p99": quantile(to_goal, 99),
        "unread": seen.lost,
    }


def frame_to_goal_ms(ticks: npt.NDArray[Any], written: Mapping[int, int]) -> list[float]:
    """Of each tick that saw a picture and commanded: from the picture to its goal at the motors."""
    rows = zip(ticks["frame_ns"].tolist(), ticks["command_seq"].tolist(), strict=True)
    return [(written[seq] - frame) / 1e6 for frame, seq in rows if frame >= 0 and seq in written]


def chunk_to_goal_ms(ticks: npt.NDArray[Any], written: Mapping[int, int]) -> list[float]:
    """Of each chunk: from the picture it was computed from to its first goal at the motors."""
    frames = dict(zip(ticks["tick"].tolist(), ticks["frame_ns"].tolist(), strict=True))
    out, last = [], -1
    for chunk, seq in zip(ticks["chunk_tick"].tolist(), ticks["command_seq"].tolist(), strict=True):
        if chunk > last and seq in written:
            last = chunk
            if frames.get(chunk, -1) >= 0:
                out.append((written[seq] - frames[chunk]) / 1e6)
    return out


def stalls(machine: Mapping[str, Mapping[str, Any]]) -> list[Stall]:
    """Every stall of every processor."""
    return [(due, woken) for floor in machine.values() for due, woken in floor.get("stalls", ())]


def without_stalls(
    machine: Mapping[str, Mapping[str, Any]], begin_ns: int, end_ns: int
) -> dict[str, dict[str, Any]]:
    """The figures of each processor's floor, its stalls counted instead of listed."""
    return {
        cpu: {
            **floor,
            "stalls": sum(begin_ns <= woken and due < end_ns for due, woken in floor.get("stalls", ())),
        }
        for cpu, floor in machine.items()
    }


def blame_machine(ticks: npt.NDArray[Any], stalled: Sequence[Stall]) -> npt.NDArray[Any]:
    """A copy in which ticks that were late while nothing could run have the cause ``machine``.

    A late tick counts as such when a stall overlaps the time from its first skipped deadline to its begin.
    """
    ticks = ticks.copy()
    late = (ticks["late_ns"] > LATE_MS * 1e6) | (ticks["skipped"] > 0)
    for index in np.flatnonzero(late).tolist():
        end = int(ticks["deadline_ns"][index] + ticks["late_ns"][index])
        begin = int(ticks["deadline_ns"][index]) - int(ticks["skipped"][index]) * PERIOD_NS
        if any(due < end and woken > begin for due, woken in stalled):
            ticks["cause"][index] = MACHINE
    return ticks


def late_causes(ticks: npt.NDArray[Any]) -> dict[str, dict[str, float]]:
    """Cause → how many ticks were more than 1 ms late because of it, and by how much at worst."""
    late = ticks[(ticks["late_ns"] > LATE_MS * 1e6) | (ticks["skipped"] > 0)]
    counts = Counter(cause.decode() for cause in late["cause"].tolist())
    return {
        cause: {
            "ticks": count,
            "worst_ms": round(float(late["late_ns"][late["cause"] == cause.encode()].max()) / 1e6, 3),
        }
        for cause, count in counts.most_common()
    }


def _ms(ns: npt.NDArray[Any]) -> list[float]:
    milliseconds: list[float] = (ns / 1e6).tolist()
    return milliseconds
