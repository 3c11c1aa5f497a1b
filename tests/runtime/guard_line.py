"""A servo core, a bus and emulated motors in a line without time, and scripts of what may happen to it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from hal.bench.emulator import ServoEmulator
from hal.bench.motors import MotorSample
from hal.dynamixel.bus import ArmBus, BusConfig
from hal.types import Vector
from runtime.errors import ServoError
from runtime.guard import GuardLimits
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
    """What reached the motors, cycle by cycle: rows of goals and measured positions, and why.

    ``frozen`` says what froze the goals in that cycle, NONE in all others.
    """

    goals: list[Vector] = field(default_factory=list)
    measured: list[Vector] = field(default_factory=list)
    frozen: list[HoldCause] = field(default_factory=list)
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
        self.course.frozen.append(step.cause if froze else HoldCause.NONE)
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
