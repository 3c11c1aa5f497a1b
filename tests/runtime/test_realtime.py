"""The loop's thread gets its priority, nothing else does; garbage waits until there is time."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hal.types import Frame
from runtime.loop_stats import TickLog, tick_reader
from runtime.nouns import ActionChunk, Observation, Source, Waypoint
from runtime.realtime import IdleCollector
from runtime.timing import TickTimer, Wake, _cause

MS = 1_000_000
ROOT = Path(__file__).parents[2]

ASK = """
import gc, json, os, threading
from runtime.realtime import RealtimeConfig, favoured_pool, make_realtime
if {drop}:
    import resource
    resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 16, 1 << 16))
    os.setuid(65534)
pool = favoured_pool(-10)
report = make_realtime(RealtimeConfig(priority=10, nice=-10, lock_memory=True, prefault=False))
after = []
thread = threading.Thread(target=lambda: after.append(os.sched_getscheduler(0)))
thread.start()
thread.join()
own = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK
nice = pool.submit(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())).result()
refused = [m.name for m in report.refused]
print(json.dumps({{
    "own": own, "thread": after[0], "nice": nice, "refused": refused, "collects": gc.isenabled()
}}))
"""


def ask(drop: bool) -> dict[str, Any]:
    """What a process of its own gets."""
    code = ASK.format(drop=drop)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True, timeout=60)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_only_the_asking_thread_becomes_real_time() -> None:
    got = ask(drop=False)
    assert got["thread"] == os.SCHED_OTHER
    assert got["own"] == (os.SCHED_OTHER if "scheduler" in got["refused"] else os.SCHED_FIFO)
    assert got["nice"] == (0 if "niceness" in got["refused"] else -10)
    assert not got["collects"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give its privileges away")
def test_what_is_refused_is_told_and_the_process_goes_on() -> None:
    got = ask(drop=True)
    assert got["refused"] == ["memory", "niceness", "scheduler"]
    assert got["nice"] == 0
    assert got["own"] == got["thread"] == os.SCHED_OTHER


@pytest.mark.parametrize(
    ("overran", "back_late", "delay_ms", "run_ms", "queued_ms", "cause"),
    [
        (True, True, 4, 4, 0, "work"),
        (False, True, 4, 1, 3, "queue"),
        (False, True, 4, 5, 0, "callback"),
        (False, True, 4, 1, 0, "interpreter"),
        (False, False, 4, 5, 0, "kernel"),
    ],
)
def test_a_late_tick_has_its_cause(
    overran: bool, back_late: bool, delay_ms: int, run_ms: int, queued_ms: int, cause: str
) -> None:
    assert _cause(overran, back_late, delay_ms * MS, run_ms * MS, queued_ms * MS) == cause


async def test_other_threads_wait_while_a_tick_runs_and_not_longer() -> None:
    before = sys.getswitchinterval()
    with TickTimer(5 * MS) as timer:
        await timer.next()
        assert sys.getswitchinterval() > before
    assert sys.getswitchinterval() == before


class FakeCollector:
    """Stands in for gc: counts what is asked of it; a full collection takes ``took_ns``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = self.took_ns = 0
        self.young = self.full = self.frozen = 0
        monkeypatch.setattr(gc, "collect", self.collect)
        monkeypatch.setattr(gc, "freeze", self.freeze)
        monkeypatch.setattr(gc, "get_count", lambda: (100_000, 0, 0))
        monkeypatch.setattr("time.monotonic_ns", lambda: self.now_ns)

    def collect(self, generation: int = 2) -> None:
        if generation == 2:
            self.full += 1
            self.now_ns += self.took_ns
        else:
            self.young += 1

    def freeze(self) -> None:
        self.frozen += 1
        self.took_ns //= 10


def tick_for(collector: IdleCollector, fake: FakeCollector, ticks: int) -> None:
    for _ in range(ticks):
        due_ns = fake.now_ns + 30 * MS
        collector.between(fake.now_ns, due_ns)
        fake.now_ns = max(due_ns, fake.now_ns)


def test_garbage_is_collected_between_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCollector(monkeypatch)
    fake.took_ns = 5 * MS
    collector = IdleCollector(every_ns=300 * MS)
    tick_for(collector, fake, 100)
    assert fake.young > 50
    assert 5 <= fake.full <= 11
    assert fake.frozen == 0


def test_a_collection_that_would_not_fit_is_made_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCollector(monkeypatch)
    fake.took_ns = 40 * MS
    collector = IdleCollector(every_ns=300 * MS)
    tick_for(collector, fake, 100)
    assert fake.frozen == 1
    assert fake.full > 1


def test_no_young_collection_shortly_before_a_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCollector(monkeypatch)
    IdleCollector().between(0, 2 * MS)
    assert fake.young == 0


def test_every_tick_is_logged_as_it_was(tmp_path: Path) -> None:
    log = TickLog(tmp_path)
    reader = tick_reader(tmp_path)
    frames = {
        name: Frame(name, 3, t_ns, np.zeros((2, 2, 3), np.uint8), False)
        for name, t_ns in (("a", 5), ("b", 9))
    }
    joints: Any = None
    seen = Observation(tick=7, t_ns=20, joints=joints, goal=np.zeros(6), frames=frames)
    chunk = ActionChunk(np.zeros((4, 6), np.float32), 4, 1, "v", 1, 1.0)
    log.decided(seen, Waypoint(np.zeros(6), 0, 0, Source.POLICY, 42), chunk)
    log.end(7, Wake(100, 3, 1), "queue", 150, 0)
    log.end(8, Wake(200, 0, 0), "", 201, 5)
    _, (first, second) = reader.since(-1)
    assert [first[n] for n in ("tick", "deadline_ns", "late_ns", "skipped", "exec_ns")] == [7, 100, 3, 1, 47]
    assert [first[n] for n in ("frame_ns", "command_seq", "chunk_tick", "source")] == [
        9,
        42,
        4,
        Source.POLICY,
    ]
    assert first["cause"] == b"queue"
    assert (first["collected_ns"], second["collected_ns"]) == (0, 5)
    assert [second[n] for n in ("tick", "frame_ns", "command_seq", "chunk_tick")] == [8, -1, -1, -1]
