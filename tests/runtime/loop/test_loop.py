"""The loop's decisions, tick by tick: who drives, and what stops it."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
from loop_bench import BUS_SILENCE_NS, Bench

from runtime.bus_records import Fault
from runtime.control import ControlConfig
from runtime.monitors import MonitorBank
from runtime.nouns import Source
from runtime.servo import HoldCause, Phase
from runtime.supervisor import Event, State
from runtime.timing import Wake


def test_nothing_is_commanded_unless_somebody_drives(bench: Bench) -> None:
    bench.tick(3)
    bench.go(Event.ENABLE)
    bench.tick(3)
    assert bench.arm.waypoints == []
    assert bench.policy.asked == []


def test_the_leader_is_followed_within_a_tick_and_its_word_expires(bench: Bench) -> None:
    bench.go(Event.ENABLE, Event.TELEOP)
    bench.leader.cycle(position=0.25)
    bench.tick()
    (waypoint,) = bench.arm.waypoints
    np.testing.assert_array_equal(waypoint.position, np.full(6, 0.25))
    assert waypoint.source is Source.TELEOP
    life_ms = (waypoint.expires_ns - waypoint.target_ns) / 1e6
    assert life_ms == pytest.approx(ControlConfig().expire_ms)


def test_a_leader_that_falls_silent_means_hold_until_a_person_resumes(bench: Bench) -> None:
    bench.go(Event.ENABLE, Event.TELEOP)
    bench.tick()
    old = dataclasses.replace(bench.leader.sample.joints, t_ns=time.monotonic_ns() - 300_000_000)
    bench.leader.sample = dataclasses.replace(bench.leader.sample, joints=old)
    bench.tick(leader_alive=False)
    assert bench.loop.state is State.HOLD
    assert "leader" in bench.loop.reason
    bench.tick(3)
    word, taken_back = bench.arm.waypoints
    assert word.leader
    assert (taken_back.leader, taken_back.expires_ns) == (True, 0)


def test_a_take_over_lets_the_leader_drive_directly_and_the_hand_back_ends_it(bench: Bench) -> None:
    bench.go(Event.ENABLE, Event.POLICY)
    bench.recorder.start("task", "rollout")
    bench.tick(3)
    assert not any(waypoint.leader for waypoint in bench.arm.waypoints)
    bench.go(Event.TELEOP)
    bench.tick(2, leader_latency_ns=5_000_000, leader_updates=8)
    word = bench.arm.waypoints[-1]
    assert (word.leader, word.source) == (True, Source.INTERVENTION)
    assert bench.loop.figures().leader_latency_ms_p50 == pytest.approx(5.0)
    bench.go(Event.POLICY)
    taken_back = bench.arm.waypoints[-1]
    assert (taken_back.leader, taken_back.expires_ns) == (True, 0), "before the policy has said anything"
    bench.tick(2, leader_latency_ns=-1)
    assert not bench.arm.waypoints[-1].leader


def test_a_remote_operator_takes_the_word_from_the_leader(bench: Bench) -> None:
    bench.go(Event.ENABLE, Event.TELEOP)
    bench.tick()
    assert bench.arm.waypoints[-1].leader
    bench.loop.remote_goal(np.full(6, -0.1), 0)
    bench.tick()
    assert not bench.arm.waypoints[-1].leader


def test_a_leader_in_fault_is_not_followed_however_fresh(bench: Bench) -> None:
    bench.go(Event.ENABLE, Event.TELEOP)
    bench.leader.cycle(fault=Fault.MOTOR, message="motor 3 is silent")
    bench.tick()
    assert bench.arm.waypoints == []
    assert "motor 3 is silent" in bench.loop.reason


def test_a_remote_goal_outranks_the_leader_and_goes_stale(bench: Bench) -> None:
    bench.go(Event.ENABLE, Event.TELEOP)
    bench.loop.remote_goal(np.full(6, -0.1), 0)
    bench.tick()
    np.testing.assert_array_equal(bench.arm.waypoints[-1].position, np.full(6, -0.1))
    bench.loop.remote_goal(np.full(6, -0.2), 250_000_000)
    bench.tick(2)
    assert len(bench.arm.waypoints) == 1, "an old goal moves nothing, and the leader does not take over"


def test_a_policys_chunk_is_played_and_asked_for_again_in_time(bench: Bench) -> None:
    versions: list[str] = []
    bench.loop.on_version = versions.append
    bench.go(Event.ENABLE, Event.POLICY)
    bench.tick(40)
    assert len(bench.arm.waypoints) >= 38
    assert {w.source for w in bench.arm.waypoints} == {Source.POLICY}
    asked = [observation.tick for observation in bench.policy.asked]
    assert 2 <= len(asked) <= 4
    assert versions == ["aaaaaaaaaaaa"]


def test_a_chunk_asked_for_before_a_stop_moves_nothing_afterwards(bench: Bench) -> None:
    bench.go(Event.ENABLE, Event.POLICY)
    bench.tick()
    bench.go(Event.HOLD, Event.RESUME)
    bench.tick(2)
    assert bench.arm.waypoints == []
    bench.go(Event.POLICY)
    bench.policy.asked.clear()
    bench.tick()
    assert len(bench.policy.asked) == 1, "a new plan from where the arm is now"


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({"estopped": True}, State.ESTOP),
        ({"fault": Fault.PORT, "message": "unplugged"}, State.FAULT),
        ({"fault": Fault.HARDWARE, "message": "too hot"}, State.FAULT),
        ({"cause": HoldCause.CONTACT, "contact_joint": 2}, State.HOLD),
        ({"phase": Phase.RELEASE}, State.OFF),
    ],
)
def test_what_the_bus_process_reports_stops_the_loop(
    bench: Bench, change: dict[str, object], state: State
) -> None:
    bench.go(Event.ENABLE, Event.TELEOP)
    bench.tick()
    bench.tick(**change)
    assert bench.loop.state is state
    commanded = len(bench.arm.waypoints)
    bench.tick(3, **change)
    assert len(bench.arm.waypoints) == commanded


def test_a_bus_process_that_says_nothing_for_as_long_as_the_motors_wait_is_a_fault(bench: Bench) -> None:
    bench.go(Event.ENABLE, Event.TELEOP)
    bench.tick()
    silent_since_ns = bench.arm.sample.joints.t_ns
    bench.loop._tick(Wake(silent_since_ns + BUS_SILENCE_NS, 0, 0))
    assert bench.loop.state is State.TELEOP
    bench.loop._tick(Wake(silent_since_ns + BUS_SILENCE_NS + 1, 0, 0))
    assert bench.loop.state is State.FAULT


def test_the_bus_process_is_not_blamed_for_what_held_up_the_loop_as_well(bench: Bench) -> None:
    """Nor the leader's: when the machine stood still both are as old as the tick is late, for one tick."""
    bench.go(Event.ENABLE, Event.TELEOP)
    bench.tick()
    stood_ns = 400_000_000
    for arm in (bench.arm, bench.leader):
        arm.sample = dataclasses.replace(
            arm.sample, joints=dataclasses.replace(arm.sample.joints, t_ns=time.monotonic_ns() - stood_ns)
        )
    bench.loop._tick(Wake(time.monotonic_ns(), 0, 12))  # twelve periods of 33 ms were skipped
    assert bench.loop.state is State.TELEOP
    bench.loop._tick(Wake(time.monotonic_ns(), 0, 0))
    assert bench.loop.state is State.FAULT, "the loop goes on, the bus process does not"


def test_a_policy_looks_at_the_newest_picture_only(bench: Bench) -> None:
    bench.camera.rate = 5
    bench.go(Event.ENABLE, Event.POLICY)
    bench.recorder.start("task", "rollout")
    bench.loop.begin_episode()
    bench.tick()
    assert bench.policy.asked[0].frames["front"] is bench.camera.published[-1]
    bench.recorder.discard()


@pytest.mark.parametrize("hold_on_doubt", [False, True])
def test_an_unsure_policy_waits_for_a_person_where_that_is_configured(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, hold_on_doubt: bool
) -> None:
    bench.loop._controller.config = ControlConfig(hold_on_doubt=hold_on_doubt)
    monkeypatch.setattr(MonitorBank, "ask_help", property(lambda _: True))
    bench.go(Event.ENABLE, Event.POLICY)
    bench.tick(3)
    assert bench.loop.state is (State.HOLD if hold_on_doubt else State.POLICY)
