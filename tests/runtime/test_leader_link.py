"""Leader to follower at servo rate: two real bus processes, two emulated arms, one ring between them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hal.bench.emulator import ServoEmulator
from hal.bench.first_order import FirstOrderBackend
from hal.dynamixel.arm import KOCH_FOLLOWER, KOCH_LEADER
from hal.types import NUM_JOINTS
from runtime.bus_handle import BusHandle, BusSample
from runtime.bus_records import STATE, Fault
from runtime.leader_link import FRESH_NS, SEQ_ROOM, LeaderLink
from runtime.leader_stats import LeaderStats
from runtime.nouns import Source, Waypoint
from runtime.ring import RingWriter, create_ring
from runtime.servo import HoldCause, Phase
from runtime.streams import NS, SERVO_NS
from tests.runtime.bus.bus_rig import START, config, sample_when
from tests.runtime.waiting import WAIT_S

LIFE_NS = NS // 4


class Pair:
    """A leader and a follower, each with its emulator and bus process; ``word`` is the loop's."""

    def __init__(self, run_dir: Path) -> None:
        self.hand = FirstOrderBackend(time_constant_s=0.02)
        self.motors = FirstOrderBackend(time_constant_s=0.02)
        self.seq = 0
        self.place(START)
        self.motors.place(np.full(NUM_JOINTS, START))
        self.emulators = (ServoEmulator(KOCH_LEADER, self.hand), ServoEmulator(KOCH_FOLLOWER, self.motors))
        for emulator in self.emulators:
            emulator.start()
        self.leader = BusHandle(config(self.emulators[0], run_dir, arm="leader", role="leader"))
        self.follower = BusHandle(config(self.emulators[1], run_dir, leader="leader"))

    def place(self, position: float) -> None:
        self.hand.place(np.full(NUM_JOINTS, position))

    def word(self, life_ns: int = LIFE_NS, source: Source = Source.TELEOP) -> None:
        """What the loop says at each tick."""
        self.seq += 1
        sample = self.leader.latest()
        assert sample is not None
        now = time.monotonic_ns()
        position = sample.joints.position
        self.follower.command(Waypoint(position, now + NS // 30, now + life_ns, source, self.seq, True))

    def drive(self, seconds: float, path: Callable[[float], float]) -> list[BusSample]:
        """Ticks at 30 Hz while the leader goes along ``path`` in steps of 2 ms; the follower's cycles."""
        newest = self.follower.latest()
        begun, tick = time.monotonic(), 0.0
        while (passed := time.monotonic() - begun) < seconds:
            self.place(path(passed))
            if passed >= tick:
                self.word()
                tick += 1 / 30
            time.sleep(0.002)
        return self.follower.since(-1 if newest is None else newest.index)

    def wait(self, condition: Callable[[BusSample], bool], what: str) -> BusSample:
        return sample_when(self.follower, condition, what)

    def stop(self) -> None:
        self.follower.stop(timeout_s=3.0)
        self.leader.stop(timeout_s=1.0)
        for emulator in self.emulators:
            emulator.stop()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    pair = Pair(tmp_path_factory.mktemp("pair"))
    try:
        pair.leader.start()
        pair.follower.start()
        yield pair
    finally:
        pair.stop()


@pytest.fixture
def pair(shared: Pair) -> Pair:
    """Enabled at the start, the leader in the same pose, nobody following."""
    if not shared.leader.alive():
        shared.leader.start()
    shared.follower.clear_estop()
    shared.follower.clear_fault()
    shared.follower.release()
    shared.place(START)
    shared.motors.place(np.full(NUM_JOINTS, START))
    shared.wait(lambda s: abs(s.joints.position[0] - START) < 3e-3, "at its start")
    sample_when(shared.leader, lambda s: abs(s.joints.position[0] - START) < 3e-3, "the leader as well")
    shared.follower.enable()
    shared.wait(lambda s: s.torque and s.phase is Phase.HOLD, "energised")
    shared.seq = 0
    return shared


def sine(seconds: float) -> float:
    return START + 0.3 * float(np.sin(4.0 * seconds))


def test_the_follower_takes_its_goals_from_the_leader_many_times_a_tick(pair: Pair) -> None:
    samples = pair.drive(1.5, sine)
    stats = LeaderStats()
    stats.begin()
    for at in range(0, len(samples), 8):
        stats.add(samples[at : at + 8])
    assert stats.hz >= 100.0
    assert 0.0 < stats.latency_ms.percentile(50) < 100.0
    led = [s for s in samples if s.leader_latency_ns >= 0]
    assert [s.leader_updates - led[0].leader_updates for s in led] == list(range(len(led)))
    assert all(s.phase is Phase.FOLLOW for s in led)
    goals = np.array([s.goal[0] for s in samples])
    assert np.ptp(goals) > 0.4, "it follows"
    assert len(np.unique(goals)) > 100, "and not in steps of a tick"
    assert samples[-1].command_seq == pair.seq


def test_a_leader_that_falls_silent_ends_in_a_hold(pair: Pair) -> None:
    pair.drive(0.4, sine)
    assert pair.leader.pid is not None
    os.kill(pair.leader.pid, signal.SIGKILL)
    last_ns = pair.leader.latest()
    assert last_ns is not None
    deadline = time.monotonic() + WAIT_S
    while (sample := pair.follower.latest()) is None or sample.phase is not Phase.HOLD:
        pair.word()  # the loop would say so no longer; the follower need not rely on that
        assert time.monotonic() < deadline
        time.sleep(1 / 30)
    assert sample.cause is HoldCause.EXPIRED
    updates = sample.leader_updates
    pair.word()
    time.sleep(0.1)
    after = pair.follower.latest()
    assert after is not None
    assert (after.leader_updates, after.fault, after.torque) == (updates, Fault.NONE, True)


@pytest.mark.parametrize("request_name", ["hold", "estop", "disable"])
def test_a_stop_ends_the_following_at_once(pair: Pair, request_name: str) -> None:
    pair.drive(0.3, sine)
    pair.word(NS)  # a word that would still hold for a second
    getattr(pair.follower, request_name)()
    sample = pair.wait(lambda s: s.phase is not Phase.FOLLOW, "stopped")
    updates = sample.leader_updates
    pair.place(START + 0.5)
    time.sleep(0.3)
    after = pair.follower.latest()
    assert after is not None
    assert after.leader_updates == updates
    assert after.phase is not Phase.FOLLOW


def test_when_the_loop_says_no_more_the_following_ends_by_itself(pair: Pair) -> None:
    pair.drive(0.3, sine)
    pair.word()
    begun = time.monotonic_ns()
    sample = pair.wait(lambda s: s.phase is Phase.HOLD, "held")
    assert sample.cause is HoldCause.EXPIRED
    assert sample.joints.t_ns >= begun + LIFE_NS - 2 * SERVO_NS
    pair.place(START - 0.4)
    time.sleep(0.2)
    after = pair.follower.latest()
    assert after is not None
    assert after.leader_updates == sample.leader_updates


def test_another_command_takes_over_from_the_leader(pair: Pair) -> None:
    pair.drive(0.3, sine)
    pair.word(NS)
    now = time.monotonic_ns()
    goal = np.full(NUM_JOINTS, START + 0.1)
    pair.follower.command(Waypoint(goal, now + NS // 30, now + NS, Source.POLICY, pair.seq + 1))
    pair.place(START - 0.5)
    pair.wait(lambda s: bool(np.abs(s.goal - goal).max() < 1e-6), "at the other command's goal")
    time.sleep(0.1)
    after = pair.follower.latest()
    assert after is not None
    np.testing.assert_allclose(after.goal, goal, atol=1e-6)


# --- the link alone -----------------------------------------------------------------------------


class Leader:
    """A leader's state ring, written by hand."""

    def __init__(self, directory: Path) -> None:
        create_ring(directory / "leader.state", STATE, 8)
        self._ring = RingWriter(directory / "leader.state", STATE)
        self.link = LeaderLink(directory / "leader.state", SERVO_NS)

    def measured(self, t_ns: int, position: float, fault: Fault = Fault.NONE, age_ns: int = 0) -> None:
        record = self._ring.record
        record["t_ns"], record["position"], record["fault"], record["age_ns"] = t_ns, position, fault, age_ns
        self._ring.push()


def word(expires_ns: int, seq: int = 1) -> Waypoint:
    return Waypoint(np.zeros(NUM_JOINTS), 0, expires_ns, Source.INTERVENTION, seq, True)


def test_each_sample_is_used_once_in_order_and_under_the_loops_number(tmp_path: Path) -> None:
    leader = Leader(tmp_path)
    assert leader.link.waypoint(NS) is None, "nobody said that it may drive"
    assert leader.link.follow(word(2 * NS, seq=7))
    leader.measured(NS, 0.5)
    first = leader.link.waypoint(NS + 1000)
    assert first is not None
    assert (first.source, first.seq // SEQ_ROOM) == (Source.INTERVENTION, 7)
    assert first.expires_ns == NS + FRESH_NS
    assert leader.link.waypoint(NS + 2000) is None
    leader.measured(NS + 2 * SERVO_NS, 0.6)
    second = leader.link.waypoint(NS + 2 * SERVO_NS + 1000)
    assert second is not None
    assert second.seq > first.seq
    assert second.target_ns == NS + 2 * SERVO_NS + 1000 + 2 * SERVO_NS, "two cycles on the way, as the leader"
    assert leader.link.latency_ns(0) == 2 * SERVO_NS + 1000
    leader.measured(NS, 0.7)
    assert leader.link.waypoint(NS + 3 * SERVO_NS) is None, "time does not go back"


def test_an_old_sample_a_faulty_leader_and_an_expired_word_ask_for_nothing(tmp_path: Path) -> None:
    leader = Leader(tmp_path)
    leader.link.follow(word(3 * NS))
    leader.measured(NS, 0.5)
    assert leader.link.waypoint(NS + FRESH_NS + 1) is None
    leader.measured(2 * NS, 0.5, Fault.MOTOR)
    assert leader.link.waypoint(2 * NS) is None
    leader.measured(2 * NS + 10, 0.5, age_ns=FRESH_NS)
    assert leader.link.waypoint(2 * NS + 20) is None, "coasting is not measuring"
    leader.measured(2 * NS + 30, 0.5)
    assert leader.link.waypoint(2 * NS + 40) is not None
    leader.measured(3 * NS, 0.5)
    assert leader.link.waypoint(3 * NS) is None
    assert not leader.link.following


def test_without_a_ring_there_is_no_following(tmp_path: Path) -> None:
    link = LeaderLink(tmp_path / "none.state", SERVO_NS)
    assert not link.follow(word(NS))
    assert link.waypoint(0) is None
