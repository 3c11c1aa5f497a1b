"""The caretaker starts again what died, and says who is well meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from hal.clock import LockstepClock
from runtime.caretaker import Caretaker, Restart
from runtime.errors import BusProcessError, CameraProcessError
from runtime.health import HealthBoard
from tests.runtime.waiting import eventually


class DeadArm:
    """A bus process that is not running; ``hold`` keeps its start from coming to an end."""

    def __init__(self, arm: str) -> None:
        self.config = SimpleNamespace(arm=arm)
        self.pid: int | None = None
        self.starts = self.refusals = 0
        self.hold = threading.Event()
        self.hold.set()

    def start(self) -> None:
        self.starts += 1
        self.hold.wait(30.0)
        if self.refusals:
            self.refusals -= 1
            raise BusProcessError("its port is busy")
        self.pid = 1

    def alive(self) -> bool:
        return self.pid is not None

    def latest(self) -> None:
        return None


class DeadCameras:
    """A camera process that is not running and needs two tries."""

    def __init__(self) -> None:
        self.handles: dict[str, Any] = {}
        self.starts = 0

    def start(self) -> None:
        self.starts += 1
        if self.starts == 1:
            raise CameraProcessError("no memory for it")

    def alive(self) -> bool:
        return self.starts > 1


class Care:
    """A caretaker among processes that have all died, on a clock that is moved by hand."""

    def __init__(self) -> None:
        self.clock = LockstepClock(10**9)
        limits = {"bus": 1.0, "leader": 1.0, "loop": 1.0, "store": 2.0, "policy": 2.0}
        self.board = HealthBoard(limits, self.clock)
        self.follower, self.leader, self.cameras = DeadArm("follower"), DeadArm("leader"), DeadCameras()
        loop: Any = SimpleNamespace(ticks=1, stats=SimpleNamespace(missed=0), recorder_error="")
        follower: Any = self.follower
        leader: Any = self.leader
        cameras: Any = self.cameras
        self.caretaker = Caretaker(loop, follower, leader, cameras, self.board, lambda: "answers")

    def well(self, name: str) -> bool:
        return self.board.report().subsystems[name].ok


@pytest.fixture
async def care() -> AsyncIterator[Care]:
    care = Care()
    yield care
    care.follower.hold.set()


async def test_a_start_that_takes_long_holds_up_nothing_else(care: Care) -> None:
    care.follower.hold.clear()
    task = asyncio.create_task(care.caretaker.run())
    await eventually(lambda: care.follower.starts)
    await eventually(lambda: care.leader.pid and care.cameras.alive())
    care.clock.advance(10 * 10**9)
    assert not care.well("loop"), "silent for ten seconds of this clock"
    await eventually(lambda: care.well("loop"))
    assert not care.well("bus")
    assert care.follower.starts == 1, "one at a time"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_start_that_fails_is_tried_again(care: Care) -> None:
    care.follower.refusals = 1
    task = asyncio.create_task(care.caretaker.run())
    await eventually(lambda: care.follower.pid and care.cameras.alive())
    assert (care.follower.starts, care.leader.starts, care.cameras.starts) == (2, 1, 2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_between_two_starts_there_is_a_pause(care: Care, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.caretaker._FIRST_PAUSE_S", 3600.0)
    care.follower.refusals = 1
    task = asyncio.create_task(care.caretaker.run())
    await eventually(lambda: care.follower.starts)
    for _ in range(3):  # it looks as often as it tells
        care.clock.advance(10 * 10**9)
        await eventually(lambda: care.well("loop"))
    assert care.follower.starts == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_pauses_between_starts_double_up_to_ten_seconds_and_begin_anew_after_a_good_while() -> None:
    restart = Restart()
    now, tries = 100.0, []
    for _ in range(7):
        while not restart.due(now):
            now += 0.25
        tries.append(now)
    pauses = [after - before for before, after in pairwise(tries)]
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0]
    assert restart.due(now + 60.0)
    assert not restart.due(now + 60.25)
    assert restart.due(now + 60.5)
