"""Whatever is asked, what the guard lets through keeps the limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from runtime.guard import Clamp, GuardLimits, braking_speed, guard_step, stopping_distance

DT = 1.0 / 240.0
LIMITS = GuardLimits(
    position_min=(-1.0, -2.0, -0.5, -1.0, -3.0, 0.0),
    position_max=(1.0, 0.5, 0.5, 2.0, 3.0, 1.2),
    velocity=(3.5, 2.0, 3.5, 5.0, 1.0, 5.0),
    acceleration=(40.0, 25.0, 60.0, 40.0, 11.0, 80.0),
    distance=(0.6, 0.3, 0.6, 0.1, 0.6, 1.0),
)
LOW, HIGH, SPEED, ACCELERATION, DISTANCE = LIMITS.table()
TOLERANCE = 1e-9

anything = st.floats(allow_nan=True, allow_infinity=True, width=64)
plausible = st.floats(-4.0, 4.0)
asked = st.lists(st.one_of(anything, plausible, plausible), min_size=6, max_size=6)
pose = st.lists(st.floats(-3.5, 3.5), min_size=6, max_size=6)
share = st.floats(0.0, 1.0)


@settings(max_examples=150, deadline=None)
@given(
    commands=st.lists(st.tuples(asked, asked, st.integers(1, 40)), min_size=1, max_size=8),
    begin=st.lists(share, min_size=6, max_size=6),
    follow=st.lists(st.one_of(st.just(0.0), share), min_size=6, max_size=6),
    scale=st.floats(0.05, 1.0),
)
def test_every_limit_holds_while_the_arm_lags_or_is_blocked(
    commands: list[tuple[list[float], list[float], int]],
    begin: list[float],
    follow: list[float],
    scale: float,
) -> None:
    """Measured joints that go towards the goal at any rate, or not at all."""
    goal = LOW + np.array(begin) * (HIGH - LOW)
    velocity, measured = np.zeros(6), goal.copy()
    for wanted, speed, steps in commands:
        for _ in range(steps):
            result = guard_step(
                goal, velocity, np.array(wanted), measured, LIMITS, DT, np.array(speed), speed_scale=scale
            )
            assert np.isfinite(result.goal).all()
            assert (result.goal >= LOW).all()
            assert (result.goal <= HIGH).all()
            assert (np.abs(result.goal - goal) <= SPEED * scale * DT + TOLERANCE).all()
            assert (np.abs(result.velocity - velocity) <= ACCELERATION * DT + 1e-7).all()
            assert (np.abs(result.goal - measured) <= DISTANCE + TOLERANCE).all()
            goal, velocity = result.goal, result.velocity
            measured = measured + np.array(follow) * (goal - measured)


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(
        st.tuples(asked, st.lists(st.one_of(anything, plausible), min_size=6, max_size=6)), max_size=30
    ),
    begin=pose,
)
def test_position_and_speed_hold_whatever_is_measured(
    steps: list[tuple[list[float], list[float]]], begin: list[float]
) -> None:
    """An arm that is thrown about, a sensor that lies, a start outside the limits."""
    goal, velocity = np.array(begin), np.zeros(6)
    low, high = np.minimum(LOW, goal), np.maximum(HIGH, goal)
    for wanted, measured in steps:
        result = guard_step(goal, velocity, np.array(wanted), np.array(measured), LIMITS, DT)
        assert np.isfinite(result.goal).all()
        assert (result.goal >= low).all()
        assert (result.goal <= high).all()
        assert (np.abs(result.goal - goal) <= SPEED * DT + TOLERANCE).all()
        goal, velocity = result.goal, result.velocity
        low, high = np.minimum(LOW, goal), np.maximum(HIGH, goal)


@settings(max_examples=100, deadline=None)
@given(drift=st.lists(st.floats(-1.0, 1.0), min_size=6, max_size=6), wanted=asked)
def test_distance_holds_while_the_arm_is_pushed_back(drift: list[float], wanted: list[float]) -> None:
    """A hand moves the arm no faster than the goals may move: they never get further ahead than allowed."""
    middle = (LOW + HIGH) / 2
    goal, velocity, measured = middle.copy(), np.zeros(6), middle.copy()
    for _ in range(60):
        measured = np.clip(measured + np.array(drift) * SPEED * DT, LOW, HIGH)
        result = guard_step(goal, velocity, np.array(wanted), measured, LIMITS, DT)
        assert (np.abs(result.goal - measured) <= DISTANCE + TOLERANCE).all()
        goal, velocity = result.goal, result.velocity


@given(
    distance=st.floats(0.0, 3.0),
    acceleration=st.floats(1.0, 500.0),
    dt=st.sampled_from([DT, 1 / 1000, 1 / 50]),
)
def test_braking_speed_ends_exactly_at_the_distance(distance: float, acceleration: float, dt: float) -> None:
    speed = braking_speed(distance, acceleration, dt)
    covered, now = 0.0, speed
    while now > 0.0:
        covered += now * dt
        now = max(0.0, now - acceleration * dt)
    assert covered == pytest.approx(distance, abs=1e-9, rel=1e-9)
    assert speed * dt + stopping_distance(speed, acceleration, dt) == pytest.approx(
        distance, abs=1e-9, rel=1e-9
    )


def run(wanted: float, measured_follows: bool = True, steps: int = 400, joint: int = 0) -> np.ndarray:
    goal, velocity, measured = np.zeros(6), np.zeros(6), np.zeros(6)
    goals = []
    target = np.zeros(6)
    target[joint] = wanted
    for _ in range(steps):
        result = guard_step(goal, velocity, target, measured, LIMITS, DT)
        goal, velocity = result.goal, result.velocity
        measured = goal if measured_follows else measured
        goals.append(goal[joint])
    return np.array(goals)


def test_a_step_arrives_without_overshoot() -> None:
    goals = run(0.8)
    assert goals[-1] == pytest.approx(0.8, abs=1e-9)
    assert goals.max() <= 0.8 + TOLERANCE
    # Trapezoid: distance over speed plus speed over acceleration.
    expected = 0.8 / SPEED[0] + SPEED[0] / ACCELERATION[0]
    assert np.argmax(goals > 0.8 - 1e-6) * DT == pytest.approx(expected, abs=5 * DT)


def test_beyond_a_limit_stops_at_the_limit() -> None:
    goals = run(50.0)
    assert goals[-1] == pytest.approx(HIGH[0], abs=1e-9)


def test_a_blocked_motor_is_led_no_further_than_the_distance() -> None:
    goals = run(0.9, measured_follows=False)
    assert goals[-1] == pytest.approx(DISTANCE[0], abs=1e-9)


def test_a_moving_target_is_followed_without_lag() -> None:
    goal, velocity = np.zeros(6), np.zeros(6)
    rate = np.full(6, 0.5)
    for step in range(1, 120):
        wanted = rate * step * DT
        result = guard_step(goal, velocity, wanted, goal, LIMITS, DT, rate)
        goal, velocity = result.goal, result.velocity
    np.testing.assert_allclose(goal, np.clip(wanted, LOW, HIGH), atol=1e-9)
    assert not result.clamped[0]


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["wanted", "measured", "wanted_velocity"])
def test_poison_brakes_and_holds(poison: float, where: str) -> None:
    goal, velocity = np.zeros(6), np.array([1.0, -1.0, 0.5, 0.0, 0.3, 0.4])
    values = {"wanted": np.full(6, 0.3), "measured": np.zeros(6), "wanted_velocity": np.zeros(6)}
    values[where][2] = poison
    for _ in range(60):
        result = guard_step(
            goal, velocity, values["wanted"], values["measured"], LIMITS, DT, values["wanted_velocity"]
        )
        assert (result.clamped & Clamp.REJECTED).all()
        goal, velocity = result.goal, result.velocity
    np.testing.assert_allclose(velocity, 0.0, atol=1e-9)
    assert 0.0 < goal[0] < 0.05


@pytest.mark.parametrize(
    ("wanted", "measured", "bit"),
    [
        (9.0, 0.0, Clamp.POSITION),
        (0.9, 0.0, Clamp.DISTANCE),
        (0.5, 0.0, Clamp.ACCELERATION),
    ],
)
def test_clamp_says_why(wanted: float, measured: float, bit: Clamp) -> None:
    result = guard_step(np.zeros(6), np.zeros(6), np.full(6, wanted), np.full(6, measured), LIMITS, DT)
    assert result.clamped[0] & bit


def test_what_is_allowed_passes_unclamped() -> None:
    result = guard_step(np.zeros(6), np.zeros(6), np.full(6, 1e-5), np.zeros(6), LIMITS, DT)
    np.testing.assert_allclose(result.goal, 1e-5)
    assert not result.clamped.any()


def test_limits_refuse_nonsense() -> None:
    with pytest.raises(ValidationError, match="position_min"):
        GuardLimits(position_min=(1.0,) * 6, position_max=(0.0,) * 6)
    with pytest.raises(ValidationError, match="6 values"):
        GuardLimits(velocity=(1.0, 2.0))
    with pytest.raises(ValidationError):
        GuardLimits(velocity=(math.nan,) * 6)
    with pytest.raises(ValidationError):
        GuardLimits.model_validate({"speed": [1.0] * 6})


def test_narrowed_takes_the_tighter_of_both() -> None:
    narrow = LIMITS.narrowed(np.full(6, -0.4), np.full(6, 9.0))
    assert narrow.position_min == (-0.4, -0.4, -0.4, -0.4, -0.4, 0.0)
    assert narrow.position_max == LIMITS.position_max
    with pytest.raises(ValidationError, match="shoulder_pan"):
        LIMITS.narrowed(np.full(6, 2.0), np.full(6, 3.0))
