"""Whatever is asked, what reaches a motor keeps the limits; the emulator, not the guard, is the judge.

The real servo core commands the real driver, which speaks to the real emulated bus; the judge is the
emulator's log of the goals that reached its motors. Everything steps on a clock of the test's own, one read,
one servo step, one write a cycle, so a counterexample repeats.

A goal travels as a whole number of ticks (2π/4096 rad), and so does the measured pose it is compared with: a
position or a distance may be off by half a tick for each of the two, a difference of two goals by one tick, a
difference of two differences by two.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from guard_line import (
    ACCELERATION,
    CONFIG,
    DISTANCE,
    DT,
    EXACT,
    HIGH,
    LOW,
    PATIENT,
    ROUNDING,
    SPEED,
    TICK_RAD,
    Course,
    Line,
    Motors,
    calm,
    play,
    rough,
    scripts,
    share,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.bench.emulator import EmulatorConfig, ServoEmulator
from hal.calibration import Calibration
from hal.dynamixel.arm import KOCH_FOLLOWER
from hal.dynamixel.bus import ArmBus
from hal.types import Vector
from runtime.contact import ContactConfig
from runtime.nouns import Source
from runtime.servo import HoldCause


@pytest.fixture(scope="module")
def line() -> Iterator[Line]:
    motors = Motors()
    config = EmulatorConfig(wire_time=False, realtime=False)
    calibration = Calibration.identity(KOCH_FOLLOWER)
    with ServoEmulator(KOCH_FOLLOWER, motors, config) as emulator:
        bus = ArmBus(KOCH_FOLLOWER, calibration, emulator.port, 1_000_000, PATIENT)
        bus.open()
        try:
            yield Line(emulator, bus, motors)
        finally:
            bus.close()


@settings(EXACT, max_examples=60)
@given(script=scripts(calm), begin=share)
def test_every_goal_that_reaches_a_motor_keeps_every_limit(
    line: Line, script: list[tuple[tuple[Any, ...], int]], begin: list[float]
) -> None:
    """An arm that follows, lags or is held, and whatever anybody asks of it: no exception to any limit."""
    start = LOW + np.array(begin) * (HIGH - LOW)
    course = play(line, script, start, CONFIG.model_copy(update={"contact": None}))
    check_positions(course, start)
    goals = np.array(course.goals).reshape(-1, 6)
    assert (np.abs(goals - np.array(course.measured).reshape(-1, 6)) <= DISTANCE + TICK_RAD).all()
    steps = np.diff(goals, axis=0)
    assert (np.abs(steps) <= SPEED * DT + TICK_RAD + ROUNDING).all()
    assert (np.abs(np.diff(steps, axis=0)) <= ACCELERATION * DT * DT + 2 * TICK_RAD + ROUNDING).all()
    over_a_tenth = goals[24:] - goals[:-24]  # over so long a span the ticks hardly count
    assert (np.abs(over_a_tenth) <= SPEED * 24 * DT + TICK_RAD + ROUNDING).all()


@settings(EXACT, max_examples=60)
@given(script=scripts(rough), begin=share)
def test_an_arm_that_is_thrown_about_stopped_and_misread_keeps_position_and_speed(
    line: Line, script: list[tuple[tuple[Any, ...], int]], begin: list[float]
) -> None:
    """Measured poses that jump, coast, are NaN; e-stops and contacts. Position always holds, and speed too
    but for the freeze of an e-stop or a contact, which is judged on its own below.
    """
    start = LOW + np.array(begin) * (HIGH - LOW)
    course = play(line, script, start, CONFIG)
    check_positions(course, start)
    goals = np.array(course.goals).reshape(-1, 6)
    steps = np.abs(np.diff(goals, axis=0))
    moved = ~np.array(course.frozen[1:], dtype=bool)
    assert (steps[moved] <= SPEED * DT + TICK_RAD + ROUNDING).all()


@settings(EXACT, max_examples=60)
@given(script=scripts(rough), begin=share, last=st.sampled_from(["estop", "contact"]))
def test_a_freeze_never_takes_a_goal_further_from_where_the_arm_is(
    line: Line, script: list[tuple[tuple[Any, ...], int]], begin: list[float], last: str
) -> None:
    """The one motion without an acceleration limit only ever takes force away.

    At a contact the gripper keeps its grip: it is not frozen, and may go on at its speed for that cycle.
    """
    start = LOW + np.array(begin) * (HIGH - LOW)
    ending: list[tuple[tuple[Any, ...], int]] = [(("estop",), 3)]
    if last == "contact":
        ahead = [0.9, 0.4, 0.4, 1.8, 2.5, 1.0]
        ending = [
            (("follow", 0.0), 0),
            (("push", 1.0), 0),
            (("command", Source.POLICY, ahead, 0, 600, 1), 60),
        ]
    course = play(line, [*script, *ending], start, CONFIG)
    froze = [i for i in range(1, len(course.frozen)) if course.frozen[i]]
    for i in froze:
        measured = np.where(np.isfinite(course.measured[i]), course.measured[i], course.goals[i - 1])
        before, after = np.abs(course.goals[i - 1] - measured), np.abs(course.goals[i] - measured)
        ordinary = np.abs(course.goals[i] - course.goals[i - 1]) <= SPEED * DT + TICK_RAD
        yields = after <= before + TICK_RAD
        assert yields[:5].all()
        assert yields[5] or (ordinary[5] and course.frozen[i] is HoldCause.CONTACT)


def check_positions(course: Course, start: Vector) -> None:
    """Inside the limits; an arm that was energised or thrown outside them only comes back in."""
    goals = np.array(course.goals).reshape(-1, 6)
    assert np.isfinite(goals).all()
    half = TICK_RAD / 2 + ROUNDING
    assert (goals >= LOW - half).all()
    assert (goals <= HIGH + half).all()


def test_the_judge_would_notice() -> None:
    """The checks above fail on a course that breaks a limit: they are not vacuous."""
    course = Course(goals=[HIGH + 0.01], measured=[HIGH], frozen=[HoldCause.NONE], thrown=[False])
    with pytest.raises(AssertionError):
        check_positions(course, HIGH)


def test_contact_is_on_by_default() -> None:
    assert CONFIG.contact == ContactConfig()
