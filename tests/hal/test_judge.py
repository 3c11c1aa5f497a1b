"""The judge of what motors are told: its measures on courses whose answers are known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from hal.bench.emulator import EmulatorConfig, ServoEmulator
from hal.bench.first_order import FirstOrderBackend
from hal.bench.judge import CAPACITY, GoalLog, Judge
from hal.calibration import RAD_PER_TICK, Calibration
from hal.dynamixel.arm import KOCH_FOLLOWER
from hal.dynamixel.bus import ArmBus
from hal.types import Vector

Times = npt.NDArray[np.int64]
PERIOD_NS = 1_000_000_000 // 240
HERE = np.zeros(2)


def energised() -> Judge:
    judge = Judge(2)
    for motor in range(2):
        judge.energise(motor, 0.0)
    judge.commit(0, HERE)
    return judge


def follow(judge: Judge, goals: Vector, t_ns: Times | None = None, measured: Vector | None = None) -> None:
    """Goals of motor 0, one a period; the motor is where it was told to be a period before."""
    there = np.concatenate([[0.0], goals[:-1]]) if measured is None else measured
    for k, goal in enumerate(goals):
        judge.goal(0, float(goal))
        at = (k + 1) * PERIOD_NS if t_ns is None else int(t_ns[k])
        judge.commit(at, np.array([there[k], 0.0]))


def test_nothing_written_is_nothing_measured() -> None:
    report = Judge(2).report()
    assert report.writes == 0
    assert report.low == report.high == (None, None)
    assert report.step == report.speed == (0.0, 0.0)


def test_speed_and_acceleration_of_a_parabola() -> None:
    judge = energised()
    t = np.arange(1, 121) / 240
    follow(judge, 0.5 * 4.0 * t**2)
    report = judge.report()
    assert report.high[0] == pytest.approx(0.5)
    assert report.speed[0] == pytest.approx(4.0 * (0.5 - 0.025), rel=0.01)  # the mean of the last span
    assert report.acceleration[0] == pytest.approx(4.0, rel=0.01)
    assert report.step[0] == pytest.approx(2.0 / 240, rel=0.01)
    assert (report.speed[1], report.step[1]) == (0.0, 0.0)


def test_a_late_write_is_hardly_an_acceleration_and_a_jump_is_a_step() -> None:
    goals = 2.0 * np.arange(1, 121) / 240
    t_ns = np.arange(1, 121, dtype=np.int64) * PERIOD_NS
    t_ns[60] += PERIOD_NS - 100_000
    judge = energised()
    follow(judge, goals[:20], t_ns[:20])
    judge.reset(0)
    follow(judge, goals[20:], t_ns[20:])
    report = judge.report()
    assert report.speed[0] < 2.0 * 1.09
    assert report.acceleration[0] < 6.5
    goals[100:] += 0.4
    judge.reset(0)
    follow(judge, goals[90:], measured=goals[90] * np.ones(30))
    assert judge.report().step[0] == pytest.approx(0.4 + 2.0 / 240)


def test_a_goal_that_comes_back_to_the_motor_gives_way() -> None:
    judge = energised()
    follow(judge, np.linspace(0.0, 0.5, 60), measured=np.zeros(60))
    assert judge.report().distance[0] == pytest.approx(0.5)
    judge.reset(0)
    follow(judge, np.array([0.01]), measured=np.array([0.0]))
    report = judge.report()
    assert report.yielded[0] == pytest.approx(0.49)
    assert report.step[0] == 0.0
    judge.reset(0)
    follow(judge, np.array([-0.4]), measured=np.array([0.0]))
    assert judge.report().step[0] == pytest.approx(0.41), "past where the motor is"


def test_what_is_seen_at_once_after_the_emulator_stood_still_is_no_speed() -> None:
    goals = 2.0 * np.arange(1, 121) / 240
    t_ns = np.arange(1, 121, dtype=np.int64) * PERIOD_NS
    t_ns[40:64] = t_ns[63] + np.arange(24) * 100_000  # a tenth of a second arrives in a burst
    judge = energised()
    follow(judge, goals[:64], t_ns[:64])
    judge.stalled()
    follow(judge, goals[64:], t_ns[64:])
    report = judge.report()
    assert report.speed[0] < 2.0 * 1.1
    assert report.step[0] == pytest.approx(2.0 / 240)
    assert report.stalls == 1


def test_a_motor_that_stopped_by_itself_is_compared_with_where_it_stands() -> None:
    judge = energised()
    follow(judge, np.linspace(0.0, 0.5, 60))
    judge.stop(0, 0.3)
    judge.reset(0)
    follow(judge, np.array([0.31]), measured=np.array([0.3]))
    report = judge.report()
    assert report.step[0] == pytest.approx(0.01)
    assert report.last_change_ns == PERIOD_NS


def test_the_log_keeps_the_last_writes_and_crosses_the_wire() -> None:
    judge = energised()
    follow(judge, 1e-4 * np.arange(CAPACITY + 10, dtype=np.float64))
    judge.release(1)
    judge.commit(10, HERE)
    log = judge.log()
    assert len(log.t_ns) == CAPACITY
    assert log.goal[-1, 0] == pytest.approx((CAPACITY + 9) * 1e-4)
    assert (np.diff(log.t_ns) > 0).all()
    assert log.torque_motor.tolist() == [0, 1, 1]
    assert log.torque_on.tolist() == [True, True, False]
    again = GoalLog.from_wire(log.to_wire())
    for name in GoalLog.__slots__:
        np.testing.assert_array_equal(getattr(again, name), getattr(log, name))


def test_the_emulator_judges_what_arrives_not_what_was_asked() -> None:
    """Goals in whole ticks, only with torque on, and a watchdog's stop is none of them."""
    with ServoEmulator(
        KOCH_FOLLOWER, FirstOrderBackend(), EmulatorConfig(wire_time=False, realtime=False)
    ) as emulator:
        bus = ArmBus(KOCH_FOLLOWER, Calibration.identity(KOCH_FOLLOWER), emulator.port, 1_000_000)
        bus.open()
        bus.write_goals(np.full(6, 0.3))
        bus.read()
        assert emulator.judge().writes == 0, "no torque yet"
        bus.set_torque(True)
        emulator.judge_reset()
        bus.write_goals(np.full(6, 0.1))
        bus.read()
        report = emulator.judge()
        assert report.writes == 1
        assert report.low == pytest.approx((0.1,) * 6, abs=RAD_PER_TICK / 2)
        assert report.step == pytest.approx((0.1,) * 6, abs=RAD_PER_TICK)
        assert report.torque == (True,) * 6
        log = emulator.goal_log()
        assert log.goal.shape == log.measured.shape == (1, 6)
        assert log.t_ns[0] == report.last_write_ns
        bus.set_torque(False)
        assert emulator.judge().torque == (False,) * 6
        bus.close()
