"""The servo core through any sequence of calls: limits hold, and it is deterministic and cheap."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from servo_bench import ACCELERATION, DISTANCE, DT, HIGH, LOW, MS, QUICK, SPEED, STEP, Bench

from runtime.servo import ServoConfig

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
