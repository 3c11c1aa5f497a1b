"""Deadlines are absolute, what was missed is skipped, and every overrun has a cause."""

from __future__ import annotations

import asyncio
import gc
import os
import time

import pytest
import uvloop

from runtime.realtime import RealtimeConfig, make_realtime
from runtime.timing import Pacer, TickTimer, TimerFd, sleep_until_ns

MS = 1_000_000


def test_sleep_is_never_early_and_returns_at_once_when_late() -> None:
    deadline = time.monotonic_ns() + 3 * MS
    sleep_until_ns(deadline)
    assert time.monotonic_ns() >= deadline
    begun = time.monotonic_ns()
    sleep_until_ns(begun - 10**9)
    assert time.monotonic_ns() - begun < 500 * MS


def pacer() -> Pacer:
    """Period 10 ms from time 0, its first period begun."""
    pacer = Pacer(10 * MS, start_ns=0)
    pacer.end_work(0)
    pacer.woken(0)
    return pacer


def test_grid_does_not_drift() -> None:
    p = pacer()
    for n in range(1, 50):
        p.end_work(n * 10 * MS - 4 * MS)
        wake = p.woken(n * 10 * MS + 90_000)
        assert (wake.deadline_ns, wake.late_ns, wake.skipped) == (n * 10 * MS, 90_000, 0)
    assert not p.overruns


@pytest.mark.parametrize(
    ("done_ms", "deadline_ms", "skipped"),
    [
        (9, 10, 0),
        (11, 10, 0),
        (12.5, 10, 0),
        (13, 20, 1),
        (20, 20, 1),
        (22, 20, 1),
        (23, 30, 2),
        (95, 100, 9),
    ],
)
def test_missed_periods_are_skipped_not_made_up(done_ms: float, deadline_ms: int, skipped: int) -> None:
    """A quarter of a period late still counts; later is skipped. Never two in quick succession."""
    p = pacer()
    p.end_work(round(done_ms * MS))
    now = max(round(done_ms * MS), deadline_ms * MS)
    wake = p.woken(now)
    assert (wake.deadline_ns, wake.skipped) == (deadline_ms * MS, skipped)
    assert p.skipped == skipped
    assert p.overruns.total() == (1 if done_ms > 10 else 0)
    assert p.next_ns == (deadline_ms + 10) * MS


def test_a_late_wakeup_is_the_schedulers_fault() -> None:
    p = pacer()
    p.end_work(4 * MS)
    wake = p.woken(35 * MS)
    assert (wake.deadline_ns, wake.late_ns, wake.skipped) == (30 * MS, 5 * MS, 2)
    assert p.overruns == {"wakeup": 1}


def test_the_longest_stage_is_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    p = pacer()
    times = iter([1 * MS, 12 * MS, 13 * MS])
    monkeypatch.setattr(time, "monotonic_ns", lambda: next(times))
    for stage in ("read", "write", "publish"):
        p.stage(stage)
    p.end_work(14 * MS)
    assert p.overruns == {"read": 1}


def test_pacer_refuses_no_period() -> None:
    with pytest.raises(ValueError):
        Pacer(0)


def test_real_periods_are_not_early() -> None:
    p = Pacer(5 * MS)
    for _ in range(20):
        wake = p.wait()
        assert wake.late_ns >= 0


@pytest.mark.parametrize(
    "factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
def test_timerfd_wakes_the_loop_on_time(factory: object) -> None:
    async def wait() -> list[int]:
        early = []
        with TimerFd() as timer:
            for _ in range(10):
                deadline = time.monotonic_ns() + 1_300_000
                await timer.sleep_until_ns(deadline)
                early.append(time.monotonic_ns() - deadline)
            await timer.sleep_until_ns(0)
        return early

    with asyncio.Runner(loop_factory=factory) as runner:  # type: ignore[arg-type]
        assert min(runner.run(wait())) >= 0


async def test_timerfd_survives_a_cancelled_wait() -> None:
    with TimerFd() as timer:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(timer.sleep_until_ns(time.monotonic_ns() + 10**9), 0.02)
        deadline = time.monotonic_ns() + 2 * MS
        await asyncio.wait_for(timer.sleep_until_ns(deadline), 5)
        assert time.monotonic_ns() >= deadline


async def test_tick_timer_skips_what_blocked_the_loop() -> None:
    with TickTimer(10 * MS) as timer:
        first = await timer.next()
        timer.stage("act")
        time.sleep(0.047)  # noqa: ASYNC251 - the very thing a tick must survive
        second = await timer.next()
    assert second.skipped >= 4
    assert (second.deadline_ns - first.deadline_ns) % (10 * MS) == 0
    assert timer.pacer.overruns["act"] == 1


def test_realtime_reports_refusals_and_carries_on() -> None:
    affinity = os.sched_getaffinity(0)
    try:
        report = make_realtime(RealtimeConfig(cpus=(100_000,)))
    finally:
        gc.unfreeze()
        gc.enable()
        os.sched_setaffinity(0, affinity)
    assert [measure.name for measure in report.refused] == ["affinity"]
    assert "cpus [100000]" in report.line()
    assert "refused" in report.line()
    assert report.measures[0].granted
