"""Whatever is asked, what reaches a motor keeps the limits; the emulator, not the guard, is the judge.

The real servo core commands the real driver, which speaks to the real emulated bus; the judge is the
emulator's log of the goals that reached its motors. Everything steps on a clock of the test's own, one read,
one servo step, one write a cycle, so a counterexample repeats.

A goal travels as a whole number of ticks (2π/4096 rad), and so does the measured pose it is compared with: a
position or a distance may be off by half a tick for each of the two, a difference of two goals by one tick, a
difference of two differences by two.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from hal.bench.emulator import EmulatorConfig, ServoEmulator
from hal.bench.motors import MotorSample
from hal.calibration import Calibration
from hal.dynamixel.arm import KOCH_FOLLOWER
from hal.dynamixel.bus import ArmBus, BusConfig
from hal.types import Vector
from runtime.contact import ContactConfig
from runtime.errors import ServoError
from runtime.guard import GuardLimits, guard_step
from runtime.nouns import Source, Waypoint
from runtime.servo import HoldCause, ServoConfig, ServoCore

# Derandomised: what CI runs today it runs tomorrow. No database, no deadline: the bus takes what it takes.
EXACT = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[Phase.generate, Phase.shrink],
)

HZ = 240
DT = 1.0 / HZ
STEP_NS = 4_166_667
TICK_NS = 8 * STEP_NS
TICK_RAD = 2 * np.pi / 4096
ROUNDING = 1e-9
LIMITS = GuardLimits(
    position_min=(-1.0, -2.0, -0.5, -1.0, -3.0, 0.0),
    position_max=(1.0, 0.5, 0.5, 2.0, 3.0, 1.2),
    velocity=(3.5, 2.0, 3.5, 3.0, 1.0, 5.0),
    acceleration=(40.0, 25.0, 60.0, 40.0, 11.0, 80.0),
    distance=(0.6, 0.3, 0.6, 0.2, 0.6, 1.0),
)
LOW, HIGH, SPEED, ACCELERATION, DISTANCE = LIMITS.table()
# A reply that is late because the machine is busy is none of this test's business.
PATIENT = BusConfig(margin_ms=50.0, max_coast=30, attempts=10)
CONFIG = ServoConfig(hold_limit_s=0.1, settle_s=0.02, lower_speed=2.0, ramp_s=0.1, max_ttl_s=1.0)


class Motors:
    """Six motors that go towards their goals at the rate ``follow``, and may be thrown or lie about it."""

    def __init__(self) -> None:
        self.position, self.goal, self.effort = np.zeros(6), np.zeros(6), np.zeros(6)
        self.follow = 1.0

    def read(self) -> MotorSample:
        zeros = np.zeros(6)
        return MotorSample(self.position, zeros, self.effort, zeros + 30.0, zeros + 12.0, zeros > 0)

    def set_goal(self, index: int, position: float) -> None:
        self.goal[index] = position

    def set_torque(self, index: int, on: bool) -> None:
        if on:
            self.goal[index] = self.position[index]

    def move(self) -> None:
        self.position = self.position + self.follow * (self.goal - self.position)


@dataclass(slots=True)
class Course:
    """What reached the motors, cycle by cycle: rows of goals and measured positions, and why."""

    goals: list[Vector] = field(default_factory=list)
    measured: list[Vector] = field(default_factory=list)
    frozen: list[bool] = field(default_factory=list)
    thrown: list[bool] = field(default_factory=list)


class Line:
    """Servo core, driver and emulator, stepped together."""

    def __init__(self, emulator: ServoEmulator, bus: ArmBus, motors: Motors) -> None:
        self.emulator, self.bus, self.motors = emulator, bus, motors

    def begin(self, position: Vector, config: ServoConfig) -> None:
        """A fresh core, the arm at ``position`` and energised there."""
        self.bus.set_torque(False)
        self.motors.position = np.round(position / TICK_RAD) * TICK_RAD
        self.motors.follow, self.motors.effort = 1.0, np.zeros(6)
        self.core = ServoCore(LIMITS, config)
        self.now = 10**9
        self.seq = 0
        self.coast, self.poison = 0, float("nan")
        self.course = Course()
        self.thrown = False
        self.joints = self.bus.read()
        self.bus.set_torque(True)
        self.core.start(_at(self.joints, self.now))
        self.emulator.judge_reset()

    def cycle(self) -> bool:
        """One period; False once the arm is released."""
        self.now += STEP_NS
        if not self.coast:
            self.joints = self.bus.read()
        self.coast = max(0, self.coast - 1)
        position = self.joints.position.copy()
        if self.poison == self.poison or self.poison_on:
            position[2] = self.poison
        before = self.core.cause
        step = self.core.step(self.now, _at(self.joints, self.now, position))
        if not step.torque:
            self.bus.set_torque(False)
            return False
        self.bus.write_goals(step.goal)
        froze = step.cause in (HoldCause.ESTOP, HoldCause.CONTACT) and before is not step.cause
        self.course.frozen.append(froze)
        self.course.measured.append(position)
        self.course.thrown.append(self.thrown)
        self.thrown = False
        self.bus.read()  # when this is answered, the goals before it have reached the motors
        self.motors.move()
        return True

    poison_on = False

    def end(self) -> Course:
        """The course as the emulator saw it."""
        log = self.emulator.goal_log()
        self.course.goals = list(log.goal[: len(self.course.frozen)])
        assert len(self.course.goals) == len(self.course.frozen), "one packet of goals a cycle"
        return self.course


def _at(joints: Any, now: int, position: Vector | None = None) -> Any:
    return type(joints)(
        joints.seq, now, joints.position if position is None else position, joints.velocity, joints.effort,
        joints.temperature, joints.voltage, joints.hardware_error, joints.moving, np.zeros(6, np.int64),
    )  # fmt: skip


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


wild = st.one_of(st.floats(allow_nan=True, allow_infinity=True, width=64), st.floats(-4.0, 4.0))
near = st.floats(-3.5, 3.5)
pose = st.lists(near, min_size=6, max_size=6)
share = st.lists(st.floats(0.0, 1.0), min_size=6, max_size=6)
ask = st.one_of(pose, pose, st.lists(wild, min_size=6, max_size=6))
command = st.tuples(
    st.just("command"),
    st.sampled_from([Source.TELEOP, Source.POLICY]),
    ask,
    st.integers(-100, 500),  # ms until the target time: late or early
    st.integers(-50, 600),  # ms until it expires
    st.sampled_from([1, 1, 1, 0, -1, -5, 1000]),  # sequence number on from the last: duplicated, out of order
)
two_sources = st.tuples(st.just("both"), ask, ask)
event = st.tuples(st.sampled_from(["hold", "latch", "lower", "start", "acknowledge"]))
stop = st.tuples(st.sampled_from(["estop", "clear_estop", "clear_estop", "start"]))
follow = st.tuples(st.just("follow"), st.sampled_from([0.0, 0.05, 0.5, 1.0]))
coast = st.tuples(st.just("coast"), st.integers(1, 12))
throw = st.tuples(st.just("throw"), pose)
poison = st.tuples(st.just("poison"), st.sampled_from([np.nan, np.inf, -np.inf, None]))
push = st.tuples(st.just("push"), st.sampled_from([0.0, 1.0, -1.0]))
calm = st.one_of(command, command, command, two_sources, event, follow)
rough = st.one_of(command, command, two_sources, event, stop, stop, follow, coast, throw, poison, push)


def scripts(actions: Any) -> Any:
    return st.lists(st.tuples(actions, st.integers(0, 20)), min_size=1, max_size=10)


def play(line: Line, script: list[tuple[tuple[Any, ...], int]], begin: Vector, config: ServoConfig) -> Course:
    """Run the script; each action is followed by so many cycles."""
    line.begin(begin, config)
    line.poison_on = False
    alive = True
    for action, cycles in script:
        _act(line, action)
        for _ in range(cycles):
            alive = alive and line.cycle()
    return line.end()


def _act(line: Line, action: tuple[Any, ...]) -> None:
    core, now = line.core, line.now
    match action:
        case ("command", source, position, due_ms, life_ms, ahead):
            seq = line.seq + ahead
            line.seq = max(line.seq, seq)
            wanted = np.array(position, dtype=np.float64)
            core.command(Waypoint(wanted, now + due_ms * 10**6, now + life_ms * 10**6, source, seq))
        case ("both", first, second):
            # Two commanders who do not know of each other, tick by tick.
            for source, position in ((Source.TELEOP, first), (Source.POLICY, second)) * 3:
                line.seq += 1
                wanted = np.array(position, dtype=np.float64)
                core.command(Waypoint(wanted, line.now + TICK_NS, line.now + 6 * TICK_NS, source, line.seq))
                for _ in range(2):
                    if not line.cycle():
                        return
        case ("latch",):
            core.hold(latch=True)
        case ("start",):
            with contextlib.suppress(ServoError):
                if core.phase.name != "RELEASE":
                    core.start(_at(line.joints, now))
        case ("follow", rate):
            line.motors.follow = rate
        case ("coast", cycles):
            line.coast = cycles
        case ("throw", position):
            line.motors.position = np.array(position)
            line.thrown = True
        case ("poison", value):
            line.poison_on, line.poison = value is not None, np.nan if value is None else value
        case ("push", effort):
            line.motors.effort = np.full(6, effort)
        case (name,):
            getattr(core, name)()


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
        assert yields[5] or (ordinary[5] and last == "contact")


def check_positions(course: Course, start: Vector) -> None:
    """Inside the limits; an arm that was energised or thrown outside them only comes back in."""
    goals = np.array(course.goals).reshape(-1, 6)
    assert np.isfinite(goals).all()
    half = TICK_RAD / 2 + ROUNDING
    assert (goals >= LOW - half).all()
    assert (goals <= HIGH + half).all()


# --- the guard alone, many more cases -----------------------------------------------------------------


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


def test_the_judge_would_notice() -> None:
    """The checks above fail on a course that breaks a limit: they are not vacuous."""
    course = Course(goals=[HIGH + 0.01], measured=[HIGH], frozen=[False], thrown=[False])
    with pytest.raises(AssertionError):
        check_positions(course, HIGH)


def test_contact_is_on_by_default() -> None:
    assert CONFIG.contact == ContactConfig()
