"""The guard alone, from anywhere to anywhere: many more cases than with a bus behind it."""

from __future__ import annotations

import numpy as np
from guard_line import ACCELERATION, DISTANCE, DT, EXACT, HIGH, LIMITS, LOW, ROUNDING, SPEED, ask, share, wild
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.guard import guard_step


@settings(EXACT, max_examples=1500)
@given(
    wanted=st.lists(wild, min_size=6, max_size=6),
    wanted_velocity=st.lists(wild, min_size=6, max_size=6),
    measured=st.lists(wild, min_size=6, max_size=6),
    begin=share,
    drift=st.lists(st.floats(-1.0, 1.0), min_size=6, max_size=6),
    scale=st.floats(0.01, 1.0),
    dt=st.sampled_from([DT, 1 / 500, 1 / 1000, 1 / 50]),
)
def test_one_step_from_anywhere_to_anywhere(
    wanted: list[float],
    wanted_velocity: list[float],
    measured: list[float],
    begin: list[float],
    drift: list[float],
    scale: float,
    dt: float,
) -> None:
    goal = LOW + np.array(begin) * (HIGH - LOW)
    velocity = np.array(drift) * SPEED * scale
    result = guard_step(
        goal, velocity, np.array(wanted), np.array(measured), LIMITS, dt, np.array(wanted_velocity), scale
    )
    assert np.isfinite(result.goal).all()
    assert np.isfinite(result.velocity).all()
    assert ((result.goal >= LOW) & (result.goal <= HIGH)).all()
    assert (np.abs(result.goal - goal) <= SPEED * scale * dt + ROUNDING).all()
    np.testing.assert_allclose(result.velocity * dt, result.goal - goal, atol=1e-9)


@settings(EXACT, max_examples=300)
@given(
    path=st.lists(st.tuples(ask, st.integers(1, 60)), min_size=1, max_size=6),
    begin=share,
    follow_rate=st.floats(0.0, 1.0),
    dt=st.sampled_from([DT, 1 / 500]),
)
def test_a_course_of_the_guard_keeps_every_limit(
    path: list[tuple[list[float], int]], begin: list[float], follow_rate: float, dt: float
) -> None:
    goal = LOW + np.array(begin) * (HIGH - LOW)
    velocity, measured = np.zeros(6), goal.copy()
    for wanted, steps in path:
        for _ in range(steps):
            result = guard_step(goal, velocity, np.array(wanted), measured, LIMITS, dt)
            assert ((result.goal >= LOW) & (result.goal <= HIGH)).all()
            assert (np.abs(result.velocity) <= SPEED + 1e-7).all()
            assert (np.abs(result.velocity - velocity) <= ACCELERATION * dt + 1e-6).all()
            assert (np.abs(result.goal - measured) <= DISTANCE + ROUNDING).all()
            goal, velocity = result.goal, result.velocity
            measured = measured + follow_rate * (goal - measured)
