"""One holder at a time; a lease that is not kept ends in a hold, in time, exactly once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from hal.clock import LockstepClock, MonotonicClock
from runtime.remote.errors import LeaseHeldError, LeaseLostError, RefusedError
from runtime.remote.lease import ControlLease
from runtime.remote.teleop import TeleopFreshness
from tests.runtime.waiting import eventually


class Holds:
    """Counts holds; ``gate`` holds one up."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.at_ns: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def hold(self, reason: str) -> None:
        self.at_ns.append(MonotonicClock().now_ns())
        self.reasons.append(reason)
        await self.gate.wait()


@contextlib.asynccontextmanager
async def watching(watched: ControlLease | TeleopFreshness) -> AsyncIterator[None]:
    task = asyncio.create_task(watched.watch())
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def test_only_one_holder_and_only_with_the_callers_own_lease() -> None:
    lease = ControlLease(2.0, LockstepClock(), Holds().hold)
    mine = lease.acquire("anna", "anna-cert")
    assert lease.holder == "anna"
    with pytest.raises(LeaseHeldError, match="held by anna"):
        lease.acquire("ben", "ben-cert")
    assert lease.require(mine.id, "anna-cert") is mine
    with pytest.raises(LeaseLostError):
        lease.require(mine.id, "ben-cert")
    with pytest.raises(LeaseLostError):
        lease.require("", "anna-cert")
    lease.release(mine.id, "anna-cert")
    assert lease.holder == ""
    assert lease.acquire("ben", "ben-cert").id != mine.id


def test_heartbeats_extend_and_expiry_is_exact() -> None:
    clock = LockstepClock()
    lease = ControlLease(2.0, clock, Holds().hold)
    mine = lease.acquire("anna", "a")
    for _ in range(5):
        clock.advance(1_999_999_999)
        lease.heartbeat(mine.id, "a")
    clock.advance(2_000_000_000)
    with pytest.raises(LeaseLostError, match="expired"):
        lease.heartbeat(mine.id, "a")
    assert lease.holder == ""


async def test_expiry_holds_once_and_frees_the_lease() -> None:
    holds = Holds()
    lease = ControlLease(0.3, MonotonicClock(), holds.hold)
    async with watching(lease):
        started_ns = MonotonicClock().now_ns()
        lease.acquire("anna", "a")
        await eventually(lambda: holds.reasons)
        assert holds.at_ns[0] - started_ns >= 300_000_000
        await asyncio.sleep(0.1)
        assert holds.reasons == ["control lost: no heartbeat from anna"]
        assert lease.acquire("ben", "b").holder == "ben"


async def test_nobody_takes_over_before_the_hold_is_done() -> None:
    holds = Holds()
    holds.gate.clear()
    lease = ControlLease(0.05, MonotonicClock(), holds.hold)
    async with watching(lease):
        lease.acquire("anna", "a")
        await eventually(lambda: holds.reasons)
        with pytest.raises(LeaseHeldError, match="put on hold"):
            lease.acquire("ben", "b")
        holds.gate.set()
        await asyncio.sleep(0.02)
        lease.acquire("ben", "b")


async def test_teleop_silence_holds_once_and_stays_refused_until_armed_again() -> None:
    holds = Holds()
    teleop = TeleopFreshness(0.1, MonotonicClock(), holds.hold)
    async with watching(teleop):
        with pytest.raises(RefusedError, match="not armed"):
            teleop.take(0)
        teleop.arm()
        await asyncio.sleep(0.2)
        assert holds.reasons == [], "no stream yet: the leader arm may be what is used"
        teleop.take(0)
        await eventually(lambda: holds.reasons)
        await asyncio.sleep(0.2)
        assert len(holds.reasons) == 1
        with pytest.raises(RefusedError, match="not armed"):
            teleop.take(0)
        teleop.arm()
        teleop.take(0)
        assert teleop.active


def test_a_goals_own_age_counts() -> None:
    teleop = TeleopFreshness(0.1, LockstepClock(), Holds().hold)
    teleop.arm()
    teleop.take(100_000_000)
    with pytest.raises(RefusedError, match="101 ms old"):
        teleop.take(101_000_000)
    with pytest.raises(RefusedError):
        teleop.take(-1)
