"""The servo core: phases, waypoints, holds, e-stops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from servo_bench import ACCELERATION, DT, MS, QUICK, SPEED, STEP, TICK, Bench, joints

from runtime.errors import ServoError
from runtime.nouns import Source, Waypoint
from runtime.servo import HoldCause, Phase, ServoConfig, ServoCore, Verdict


def test_released_until_started() -> None:
    bench = Bench(position=0.3)
    assert bench.command(0.5) is Verdict.REFUSED
    step = bench.run(0.1)
    assert (step.phase, step.torque) == (Phase.RELEASE, False)
    np.testing.assert_array_equal(step.goal, bench.position)


def test_starts_where_the_arm_is() -> None:
    bench = Bench(position=0.3).start()
    step = bench.run(0.05)
    assert (step.phase, step.cause, step.torque) == (Phase.HOLD, HoldCause.STARTED, True)
    np.testing.assert_array_equal(step.goal, np.full(6, 0.3))


def test_waypoint_is_reached_at_its_time_in_a_straight_line() -> None:
    bench = Bench().start()
    bench.command(0.06, ahead=200 * MS, life=400 * MS)
    bench.run(0.1)
    assert bench.core.goal[0] == pytest.approx(0.03, abs=0.002)
    bench.run(0.104)
    assert bench.core.goal[0] == pytest.approx(0.06, abs=1e-3)
    bench.run(0.1)
    assert bench.core.goal[0] == pytest.approx(0.06, abs=1e-9)


def test_stream_of_waypoints_is_followed_smoothly() -> None:
    bench = Bench().start()
    for tick in range(1, 91):
        bench.command(0.4 * np.sin(2.0 * tick / 30))
        bench.run(1 / 30)
    goals = np.array(bench.goals)[:, 0]
    times = np.arange(1, len(goals) + 1) / 240
    assert np.abs(goals - 0.4 * np.sin(2.0 * times))[48:].max() < 3e-3
    assert np.abs(np.diff(goals, 2)).max() <= ACCELERATION[0] * DT * DT + 1e-9


def test_expired_holds_then_lowers_then_releases() -> None:
    bench = Bench(position=0.2).start()
    bench.command(0.25, life=100 * MS)
    assert bench.run(0.09).phase is Phase.FOLLOW
    step = bench.run(0.02)
    assert (step.phase, step.cause) == (Phase.HOLD, HoldCause.EXPIRED)
    assert bench.run(0.15).phase is Phase.HOLD
    step = bench.run(0.1)
    assert (step.phase, step.torque) == (Phase.LOWER, True)
    assert bench.command(0.1) is Verdict.REFUSED
    before = len(bench.goals)
    step = bench.run(3.2)
    assert (step.phase, step.torque) == (Phase.RELEASE, False)
    np.testing.assert_allclose(step.goal[:5], QUICK.rest_pose, atol=1e-6)
    assert step.goal[5] == pytest.approx(0.25, abs=1e-6), "the gripper keeps what it holds"
    speeds = np.abs(np.diff(np.array(bench.goals[before - 1 :]), axis=0)) / DT
    assert speeds.max() == pytest.approx(QUICK.lower_speed, rel=0.01)
    assert np.array(bench.goals)[:, 1].min() >= QUICK.rest_pose[1] - 1e-6, "no overshoot into the table"
    assert bench.core.counters.expiries == 1


def test_lowering_arrives_even_when_cycles_are_missed() -> None:
    """Each cycle moves as far as one period allows; when half of them are missing it takes longer."""
    bench = Bench(position=0.2).start()
    bench.core.lower()
    step = None
    while step is None or step.torque:
        bench.now += 8 * STEP
        step = bench.core.step(bench.now, bench.joints())
        bench.position = step.goal
    np.testing.assert_allclose(step.goal[:5], QUICK.rest_pose, atol=1e-2)


def test_lowering_onto_something_releases_in_the_end() -> None:
    bench = Bench(QUICK.model_copy(update={"contact": None}), position=0.2).start()
    bench.run(0.05)
    bench.blocked = True
    bench.core.lower()
    assert bench.run(2.0).torque
    assert not bench.run(10.0).torque


def test_moving_arm_brakes_when_its_commander_falls_silent() -> None:
    bench = Bench().start()
    for tick in range(1, 16):
        bench.command(tick / 30 * 1.5, life=50 * MS)
        bench.run(1 / 30)
    bench.run(0.15)
    speeds = np.diff(np.array(bench.goals)[:, 0]) / DT
    assert np.abs(np.diff(speeds)).max() <= ACCELERATION[0] * DT + 1e-6
    assert speeds[-1] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({"position": np.array([0, 0, np.nan, 0, 0, 0.0])}, Verdict.MALFORMED),
        ({"position": np.full(6, np.inf)}, Verdict.MALFORMED),
        ({"position": np.zeros(5)}, Verdict.MALFORMED),
        ({"position": np.zeros((6, 1))}, Verdict.MALFORMED),
        ({"position": np.zeros(6, dtype=complex)}, Verdict.MALFORMED),
        ({"seq": 5}, Verdict.OUT_OF_ORDER),
        ({"seq": 4}, Verdict.OUT_OF_ORDER),
        ({"expires_ns": 0}, Verdict.EXPIRED),
        ({}, Verdict.ACCEPTED),
    ],
)
def test_waypoints_are_judged_and_counted(change: dict[str, Any], verdict: Verdict) -> None:
    bench = Bench().start()
    bench.seq = 4
    assert bench.command(0.01) is Verdict.ACCEPTED
    good = Waypoint(np.full(6, 0.02), bench.now + TICK, bench.now + 200 * MS, Source.POLICY, 6)
    before = bench.core.counters
    assert bench.core.command(replace(good, **change)) is verdict
    after = bench.core.counters
    assert getattr(after, verdict.name.lower()) == getattr(before, verdict.name.lower()) + 1
    bench.run(0.2)
    goal = 0.02 if verdict is Verdict.ACCEPTED else 0.01
    np.testing.assert_allclose(bench.core.goal, goal, atol=1e-9)


def test_a_waypoint_cannot_claim_to_live_for_ever() -> None:
    bench = Bench(QUICK.model_copy(update={"max_ttl_s": 0.1})).start()
    bench.command(0.1, life=10**18)
    assert bench.run(0.15).phase is Phase.HOLD


def test_ramp_limits_the_first_motion() -> None:
    bench = Bench(ServoConfig(ramp_s=1.0, ramp_floor=0.1)).start()
    bench.command(2.0, ahead=0, life=2000 * MS)
    bench.run(1.2)
    speeds = np.abs(np.diff(np.array(bench.goals)[:, 0])) / DT
    times = np.arange(2, len(speeds) + 2) * DT
    assert (speeds <= SPEED[0] * np.minimum(1.0, 0.1 + 0.9 * times) + 1e-6).all()
    assert speeds.max() > 0.5 * SPEED[0]


def test_estop_freezes_at_the_measured_pose_at_once_and_latches() -> None:
    bench = Bench().start()
    bench.blocked = True
    bench.command(0.5, ahead=0)
    bench.run(0.2)
    assert bench.core.goal[0] > 0.3
    bench.core.estop()
    step = bench.run(DT)
    assert (step.phase, step.cause, step.torque) == (Phase.HOLD, HoldCause.ESTOP, True)
    np.testing.assert_array_equal(step.goal, bench.position)
    assert bench.command(0.5) is Verdict.REFUSED
    with pytest.raises(ServoError, match="e-stop"):
        bench.start()
    bench.core.lower()
    bench.core.acknowledge()
    step = bench.run(2.0)
    assert (step.phase, step.cause) == (Phase.HOLD, HoldCause.ESTOP), "nothing moves an e-stopped arm"


def test_cleared_estop_stays_held_until_started() -> None:
    bench = Bench().start()
    bench.core.estop()
    bench.run(0.05)
    bench.core.clear_estop()
    step = bench.run(0.05)
    assert (step.phase, step.cause) == (Phase.HOLD, HoldCause.CLEARED)
    assert bench.command(0.1) is Verdict.REFUSED
    bench.start()
    assert bench.command(0.1) is Verdict.ACCEPTED


def test_estop_while_released_keeps_it_released() -> None:
    bench = Bench()
    bench.core.estop()
    step = bench.run(0.05)
    assert (step.phase, step.cause, step.torque) == (Phase.RELEASE, HoldCause.ESTOP, False)


def test_restart_of_an_energised_arm_does_not_jerk() -> None:
    bench = Bench().start()
    bench.blocked = True
    bench.command(0.3, ahead=0)
    bench.run(0.3)
    goal = bench.core.goal
    bench.start()
    np.testing.assert_allclose(bench.run(DT).goal, goal, atol=1e-6)


def test_adopted_arm_is_held_and_not_commanded() -> None:
    bench = Bench(position=0.4)
    bench.core.adopt(bench.joints())
    step = bench.run(DT)
    assert (step.phase, step.cause, step.torque) == (Phase.HOLD, HoldCause.CLEARED, True)
    assert bench.command(0.5) is Verdict.REFUSED
    bench.core.acknowledge()
    assert bench.command(0.5) is Verdict.REFUSED


def test_latched_hold_waits_for_acknowledgement() -> None:
    bench = Bench().start()
    bench.command(0.1)
    bench.core.hold(latch=True)
    assert bench.command(0.1) is Verdict.REFUSED
    bench.core.acknowledge()
    assert bench.command(0.1) is Verdict.ACCEPTED


def test_start_refuses_a_pose_that_is_not_finite() -> None:
    with pytest.raises(ServoError, match="not finite"):
        ServoCore().start(joints(0, np.full(6, np.nan)))
