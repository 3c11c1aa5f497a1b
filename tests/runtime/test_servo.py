"""The servo core: phases, waypoints, and limits that hold through any sequence of commands."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.types import JointState
from runtime.contact import ContactConfig
from runtime.errors import ServoError
from runtime.guard import GuardLimits
from runtime.nouns import Source, Waypoint
from runtime.servo import HoldCause, Phase, ServoConfig, ServoCore, Verdict

STEP = 4_166_667
TICK = 33_333_333
MS = 1_000_000
DT = 1.0 / 240.0
LIMITS = GuardLimits()
LOW, HIGH, SPEED, ACCELERATION, DISTANCE = LIMITS.table()
QUICK = ServoConfig(ramp_s=0.0, hold_limit_s=0.2, settle_s=0.05, lower_speed=1.0)


def joints(t_ns: int, position: Any, velocity: Any = None, effort: Any = None) -> JointState:
    zeros = np.zeros(6)
    return JointState(
        0,
        t_ns,
        np.array(position, dtype=np.float64),
        zeros if velocity is None else np.array(velocity, dtype=np.float64),
        zeros if effort is None else np.array(effort, dtype=np.float64),
        zeros,
        zeros,
        np.zeros(6, np.uint8),
        np.zeros(6, bool),
        np.zeros(6, np.int64),
    )


class Bench:
    """A core and an arm that is wherever its goal is, unless ``blocked``."""

    def __init__(self, config: ServoConfig = QUICK, position: float = 0.0) -> None:
        self.core = ServoCore(LIMITS, config)
        self.now = 1_000 * MS
        self.position = np.full(6, position)
        self.effort = np.zeros(6)
        self.blocked = False
        self.seq = 0
        self.goals: list[np.ndarray] = []

    def joints(self) -> JointState:
        return joints(self.now, self.position, effort=self.effort)

    def start(self) -> Bench:
        self.core.start(self.joints())
        return self

    def command(self, position: Any, ahead: int = TICK, life: int = 200 * MS) -> Verdict:
        self.seq += 1
        goal = np.full(6, position) if np.isscalar(position) else position
        return self.core.command(Waypoint(goal, self.now + ahead, self.now + life, Source.POLICY, self.seq))

    def run(self, seconds: float) -> Any:
        step = None
        for _ in range(round(seconds * 240)):
            self.now += STEP
            step = self.core.step(self.now, self.joints())
            self.goals.append(step.goal)
            if not self.blocked:
                self.position = step.goal
        return step


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


def press(joint: int, effort: float, config: ServoConfig = QUICK) -> tuple[Bench, Any]:
    """Drive into something that stops every joint, ``joint`` reporting ``effort`` while it pushes."""
    bench = Bench(config).start()
    bench.run(0.05)
    bench.blocked = True
    step = None
    for tick in range(1, 25):
        bench.command(min(tick / 30, 0.55))
        bench.effort[joint] = effort * min(1.0, tick / 8)
        step = bench.run(1 / 30)
    return bench, step


@pytest.mark.parametrize(("joint", "effort"), [(0, 0.9), (1, 0.9), (2, 1.4), (4, 1.4)])
def test_contact_freezes_at_the_measured_pose_and_is_reported(joint: int, effort: float) -> None:
    bench, step = press(joint, effort)
    assert (step.phase, step.cause, step.contact_joint) == (Phase.HOLD, HoldCause.CONTACT, joint)
    np.testing.assert_array_equal(step.goal[:5], bench.position[:5])
    assert step.goal[5] > 0.1, "the gripper keeps its grip"
    assert bench.core.counters.contacts == 1
    assert bench.command(0.1) is Verdict.REFUSED
    bench.core.acknowledge()
    assert bench.command(0.0) is Verdict.ACCEPTED
    assert bench.run(DT).contact_joint == -1


@pytest.mark.parametrize(
    ("joint", "effort"),
    [(5, 1.47), (0, 0.25), (2, 0.5), (0, -0.9)],
    ids=["gripper grasps", "light load", "light current", "helped along"],
)
def test_ordinary_efforts_are_no_contact(joint: int, effort: float) -> None:
    bench, step = press(joint, effort)
    assert step.phase is Phase.FOLLOW
    assert bench.core.counters.contacts == 0


def test_contact_can_be_switched_off() -> None:
    _, step = press(0, 0.9, QUICK.model_copy(update={"contact": None}))
    assert step.phase is Phase.FOLLOW


def test_gravity_is_expected_effort() -> None:
    """A joint that always carries 0.4 of its load is not in contact at 0.6."""
    bench = Bench(QUICK.model_copy(update={"hold_limit_s": 60.0, "contact": ContactConfig()})).start()
    bench.effort[1] = 0.4
    bench.run(5.0)
    bench.blocked = True
    for tick in range(1, 25):
        bench.command(min(tick / 30, 0.5))
        bench.effort[1] = 0.6
        bench.run(1 / 30)
    assert bench.core.counters.contacts == 0


actions = st.one_of(
    st.tuples(
        st.just("command"), st.lists(st.floats(-6.0, 6.0), min_size=6, max_size=6), st.integers(-50, 400)
    ),
    st.tuples(st.just("garbage"), st.sampled_from([np.nan, np.inf, -np.inf])),
    st.tuples(st.sampled_from(["hold", "lower", "start", "clear_estop", "acknowledge", "latch"])),
)


@settings(max_examples=80, deadline=None)
@given(
    script=st.lists(st.tuples(actions, st.integers(0, 60)), min_size=1, max_size=14),
    begin=st.lists(st.floats(-1.0, 1.0), min_size=6, max_size=6),
    stiffness=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_limits_hold_through_any_sequence(
    script: list[tuple[tuple[Any, ...], int]], begin: list[float], stiffness: float
) -> None:
    """No e-stop or contact here: those two may stop harder than the acceleration limit."""
    config = QUICK.model_copy(update={"contact": None, "hold_limit_s": 0.05, "lower_speed": 2.0})
    bench = Bench(config)
    bench.position = np.array(begin)
    bench.start()
    goal, velocity = bench.core.goal, np.zeros(6)
    for action, steps in script:
        match action:
            case ("command", position, ahead):
                bench.command(np.array(position), ahead=ahead * MS, life=(ahead + 60) * MS)
            case ("garbage", value):
                bench.command(value)
            case ("latch",):
                bench.core.hold(latch=True)
            case ("start",):
                bench.core.start(bench.joints())
            case (name,):
                getattr(bench.core, name)()
        for _ in range(steps):
            bench.now += STEP
            step = bench.core.step(bench.now, bench.joints())
            if not step.torque:
                return
            assert np.isfinite(step.goal).all()
            assert ((step.goal >= LOW) & (step.goal <= HIGH)).all()
            assert (np.abs(step.goal - goal) <= SPEED * DT + 1e-9).all()
            assert (np.abs(step.velocity - velocity) <= ACCELERATION * DT + 1e-7).all()
            assert (np.abs(step.goal - bench.position) <= DISTANCE + 1e-9).all()
            goal, velocity = step.goal, step.velocity
            bench.position = bench.position + stiffness * (goal - bench.position)


def test_same_calls_give_the_same_bytes() -> None:
    def session() -> bytes:
        bench = Bench(ServoConfig()).start()
        rng = np.random.default_rng(3)
        for _ in range(60):
            bench.command(rng.uniform(-1, 1, 6))
            bench.run(1 / 30)
        return np.array(bench.goals).tobytes()

    assert session() == session()


def test_a_step_is_cheap() -> None:
    """30 µs on the machine it was made for; the test allows a slow and busy one ten times that."""
    bench = Bench().start()
    bench.run(0.1)
    state = bench.joints()
    bench.command(0.1, ahead=1000 * MS, life=1900 * MS)
    best = float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        for _ in range(100):
            bench.now += 1000
            bench.core.step(bench.now, state)
        best = min(best, (time.perf_counter() - begun) / 100)
    assert best < 300e-6
