"""`ratchet bench loop`: its figures from what was seen, and the whole of it for a moment."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.loop_stats import TICK
from tests.tools.acting import call
from tools.bench import peers
from tools.bench.loads import LOADS
from tools.bench.loop_figures import chunk_to_goal_ms, frame_to_goal_ms, late_causes, timing
from tools.bench.watching import Seen

MS = 1_000_000


def ticks(**columns: list[Any]) -> Any:
    rows = np.zeros(len(next(iter(columns.values()))), TICK)
    rows["frame_ns"] = rows["command_seq"] = rows["chunk_tick"] = -1
    rows["tick"] = np.arange(len(rows))
    for name, values in columns.items():
        rows[name] = values
    return rows


def test_a_picture_counts_until_its_goal_is_written() -> None:
    seen = ticks(frame_ns=[0, 10 * MS, -1, 40 * MS], command_seq=[1, -1, 3, 4])
    assert frame_to_goal_ms(seen, {1: 7 * MS, 3: 9 * MS, 4: 52 * MS}) == [7.0, 12.0]


def test_a_chunk_counts_from_its_own_picture_to_its_first_goal() -> None:
    seen = ticks(
        frame_ns=[0, 10 * MS, 20 * MS, 30 * MS, 40 * MS],
        command_seq=[1, 2, 3, 4, 5],
        chunk_tick=[-1, -1, 1, 1, 3],
    )
    written = {seq: (seq * 10 + 5) * MS for seq in range(1, 6)}
    assert chunk_to_goal_ms(seen, written) == [25.0, 25.0]


def test_late_ticks_are_told_by_cause() -> None:
    seen = ticks(
        late_ns=[0, 2 * MS, 3 * MS, MS // 2, 0],
        cause=[b"", b"queue", b"queue", b"", b"work"],
        skipped=[0, 0, 0, 0, 1],
    )
    assert late_causes(seen) == {
        "queue": {"ticks": 2, "worst_ms": 3.0},
        "work": {"ticks": 1, "worst_ms": 0.0},
    }


def test_what_the_machine_did_is_not_blamed_on_the_loop() -> None:
    seen = ticks(
        deadline_ns=[100 * MS, 200 * MS, 400 * MS],
        late_ns=[5 * MS, 5 * MS, 2 * MS],
        skipped=[0, 0, 2],
        cause=[b"queue", b"queue", b"work"],
    )
    figures = timing(
        Seen(seen, np.zeros(0, np.int64), np.zeros(0, np.int64)),
        1.0,
        [(101 * MS, 104 * MS), (350 * MS, 360 * MS)],
    )
    assert figures["late_causes"] == {
        "machine": {"ticks": 2, "worst_ms": 5.0},
        "queue": {"ticks": 1, "worst_ms": 5.0},
    }
    assert (figures["missed"], figures["missed_in_stalls"]) == (2, 2)


def test_the_tail_is_of_every_tick() -> None:
    late = np.arange(2000) * 1000
    cycles = np.arange(480, dtype=np.int64)
    figures = timing(Seen(ticks(late_ns=late.tolist()), cycles, cycles), seconds=2.0)
    assert figures["ticks"] == 2000
    assert figures["lateness_ms_p50"] == pytest.approx(0.999, abs=0.002)
    assert figures["lateness_ms_p999"] == pytest.approx(1.997, abs=0.002)
    assert figures["lateness_ms_max"] == pytest.approx(1.999)
    assert figures["bus_hz"] == 240.0


def test_a_relative_sleep_loop_drifts_and_a_spinning_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def monotonic() -> float:
        now[0] += 1e-6
        return now[0]

    def sleep(seconds: float) -> None:
        now[0] += seconds + 1e-4  # as sleeping does, a little too long

    monkeypatch.setattr(time, "monotonic", monotonic)
    monkeypatch.setattr(time, "sleep", sleep)
    drifting = peers.run(peers.relative_sleep, iter([False] * 300 + [True]).__next__)
    spinning = peers.run(peers.sleep_spin, iter([False] * 300 + [True]).__next__)
    assert drifting["ticks"] == spinning["ticks"] == 300
    assert drifting["lateness_ms_max"] > 30
    assert spinning["lateness_ms_max"] < 0.1
    assert drifting["drift_ms_per_minute"] > 100


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_four_loads_in_one_run(short_dir: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    result = call("bench", "loop", "--seconds", "3", "--json", "--dir", short_dir)
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    figures = json.loads(result.stdout)
    assert list(figures["loads"]) == [load.name for load in LOADS]
    for name, load in figures["loads"].items():
        assert load["ticks"] + load["missed"] >= 85, name
        assert 0 <= load["lateness_ms_p50"] <= load["lateness_ms_p99"] <= load["lateness_ms_p999"]
        assert load["lateness_ms_p999"] <= load["lateness_ms_max"]
        assert load["bus_hz"] > 100, name
        assert 0 < load["photon_to_goal_ms_p50"] < 2000, name
        assert load["cpu_percent"] > 0
        assert load["interruptions"] == [], name
        assert load["unread"] == 0
        assert all(floor["lateness_ms_p50"] > 0 for floor in load["machine"].values())
        for kind in peers.KINDS:
            assert load["peers"][kind]["ticks"] > 60
    assert figures["loads"]["recording"]["episodes"] >= 1
    assert figures["complete"]
    threads = figures["loads"]["learning"]["threads"]["learner"]
    assert "IDLE" in threads
    assert "OTHER" not in threads
    assert figures["interference"] > 0
    assert signal.getsignal(signal.SIGINT) is before
