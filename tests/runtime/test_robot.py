"""The facade's order of things: whoever begins to drive begins slowly."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from episodes.errors import RecordingError
from episodes.store import EpisodeStore
from runtime.remote.errors import RefusedError
from runtime.robot import Robot
from runtime.supervisor import Event, State
from tests.runtime.loop.loop_bench import Bench


class Follower:
    """The bench's arm with the requests of a bus process; notes in which state each came."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.asked: list[tuple[str, State]] = []
        self.latest = bench.arm.latest

    def enable(self) -> None:
        self.asked.append(("enable", self._bench.loop.state))
        self._bench.arm.cycle()

    def hold(self) -> None:
        self.asked.append(("hold", self._bench.loop.state))

    def disable(self) -> None:
        self.asked.append(("disable", self._bench.loop.state))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with EpisodeStore.open(tmp_path / "store") as store:
        yield Bench(store)


def make(bench: Bench) -> tuple[Robot, Follower]:
    follower: Any = Follower(bench)
    policy: Any = bench.policy
    return Robot("test", bench.loop, follower, policy, bench.recorder), follower


def test_an_arm_that_stood_ready_for_long_begins_slowly(bench: Bench) -> None:
    robot, follower = make(bench)
    bench.go(Event.ENABLE)
    asyncio.run(robot.set_mode("teleop"))
    assert bench.loop.state is State.TELEOP
    assert follower.asked[-1] == ("enable", State.READY), "the ramp starts anew before anybody drives"


def test_a_take_over_begins_slowly_too(bench: Bench) -> None:
    robot, follower = make(bench)
    bench.go(Event.ENABLE, Event.POLICY)
    asyncio.run(robot.set_mode("teleop"))
    assert bench.loop.state is State.TELEOP
    assert follower.asked == [("enable", State.POLICY)]


def test_a_stop_during_the_change_of_mode_wins(bench: Bench) -> None:
    robot, follower = make(bench)
    bench.go(Event.ENABLE)
    enable = follower.enable

    def enable_while_somebody_stops() -> None:
        enable()
        robot._stops += 1

    follower.enable = enable_while_somebody_stops  # type: ignore[method-assign]
    with pytest.raises(RefusedError, match="stopped meanwhile"):
        asyncio.run(robot.set_mode("teleop"))
    assert bench.loop.state is State.READY
    assert follower.asked[-1][0] == "disable"


def test_only_the_episode_that_ended_last_is_thrown_away(bench: Bench) -> None:
    robot, _ = make(bench)
    bench.go(Event.ENABLE, Event.TELEOP)

    async def session() -> tuple[str, str]:
        ids = []
        for _ in range(2):
            ids.append((await robot.start_episode("task")).id)
            bench.tick(2)
            await robot.end_episode("success", "")
        with pytest.raises(RefusedError, match="not the episode that ended last"):
            await robot.throw_away(ids[0])
        await robot.throw_away(ids[1])
        with pytest.raises(RefusedError):
            await robot.throw_away(ids[1])
        return ids[0], ids[1]

    first, _second = asyncio.run(session())
    bench.store.sync()
    for _ in range(1000):
        if not bench.store.active():
            break
        time.sleep(0.01)
    assert bench.store.ids() == [first]


def test_a_full_disk_is_the_only_reason_while_the_mode_is_as_asked(bench: Bench) -> None:
    robot, _ = make(bench)
    bench.go(Event.ENABLE, Event.TELEOP)
    assert asyncio.run(robot.state()).reason == bench.loop.reason != ""
    bench.loop.recording_failed(RecordingError("no space left on /store", "free some"))
    assert asyncio.run(robot.state()).reason == "no space left on /store; free some"
    bench.go(Event.BUS_FAULT)
    reason = asyncio.run(robot.state()).reason
    assert reason == f"{bench.loop.reason}; no space left on /store; free some", "a fault is news, too"
