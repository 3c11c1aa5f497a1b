"""What a bus process does in trouble: e-stops, kills, a pulled cable, motors that fail or fall silent."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from bus_rig import RELAXED, SERVO, START, Arm, config, sample_when

from hal.bench.emulator import ServoEmulator
from hal.bench.first_order import FirstOrderBackend
from hal.bench.wire import EmulatorFaults
from hal.dynamixel.arm import KOCH_FOLLOWER
from runtime.bus_handle import BusConfig, BusHandle, raise_estop
from runtime.bus_records import Fault
from runtime.errors import BusProcessError
from runtime.servo import HoldCause, Phase
from tests.runtime.waiting import until


def test_estop_stops_at_once_latches_and_is_cleared_by_name(arm: Arm) -> None:
    arm.enable_and_move()
    arm.handle.estop()
    sample = arm.wait(lambda s: s.estopped and s.cause is HoldCause.ESTOP, "the e-stop")
    assert sample.torque
    assert arm.motors.torque.all(), "an e-stopped arm must not fall"
    assert arm.still()
    arm.command(1.0)
    with pytest.raises(BusProcessError, match="e-stop"):
        arm.handle.enable()
    assert arm.still()
    arm.handle.clear_estop()
    assert arm.wait(lambda s: not s.estopped, "cleared").phase is Phase.HOLD
    raise_estop(arm.handle.config.run_dir)
    arm.wait(lambda s: s.estopped, "an e-stop from elsewhere")


def test_estop_survives_the_bus_process(arm: Arm) -> None:
    arm.handle.estop()
    arm.wait(lambda s: s.estopped, "the e-stop")
    assert arm.handle.pid is not None
    os.kill(arm.handle.pid, signal.SIGKILL)
    until(lambda: not arm.handle.alive(), "its death")
    arm.handle.start()
    arm.wait(lambda s: s.estopped and s.cycles > 1, "latched again")
    with pytest.raises(BusProcessError, match="e-stop"):
        arm.handle.enable()


def test_killed_process_leaves_the_motors_stopped_and_is_taken_over(arm: Arm) -> None:
    arm.enable_and_move()
    assert arm.handle.pid is not None
    os.kill(arm.handle.pid, signal.SIGKILL)
    arm.wait_for_watchdog()
    assert not arm.handle.alive()
    assert arm.still()
    assert arm.motors.torque.all(), "stopped, not dropped"
    stopped_at = arm.motors.goals
    assert (stopped_at < 1.1).all()
    with pytest.raises(BusProcessError, match="acknowledge"):
        arm.handle.enable()

    before = arm.sample().index
    arm.handle.start()
    sample = arm.wait(lambda s: s.index > before and s.torque, "taken over")
    assert (sample.phase, sample.cause) == (Phase.HOLD, HoldCause.CLEARED)
    assert arm.still()
    np.testing.assert_allclose(arm.motors.goals, stopped_at, atol=5e-3)
    arm.command(0.5)
    time.sleep(0.1)
    assert arm.sample().phase is Phase.HOLD, "nobody enabled it"
    arm.handle.enable()
    arm.command(float(stopped_at[0]) + 0.1)
    arm.wait(lambda s: s.goal[0] > stopped_at[0] + 0.09, "moves again")


def test_stopped_process_trips_the_watchdog_and_is_a_latched_fault(arm: Arm) -> None:
    arm.enable_and_move()
    pid = arm.handle.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    arm.wait_for_watchdog()
    assert arm.still()
    until(lambda: not arm.handle.alive(), "its death")
    os.kill(pid, signal.SIGCONT)
    sample = arm.wait(lambda s: s.fault is Fault.WATCHDOG, "the fault")
    assert "watchdog" in sample.message
    assert arm.still()
    with pytest.raises(BusProcessError, match="clear the fault"):
        arm.handle.enable()
    arm.handle.clear_fault()
    arm.handle.enable()
    arm.command(0.3)
    arm.wait(lambda s: abs(s.goal[0] - 0.3) < 1e-6, "moves again")


def test_cable_out_and_back(arm: Arm) -> None:
    arm.enable_and_move()
    arm.emulator.disconnect()
    sample = arm.wait(lambda s: s.fault is not Fault.NONE, "the fault")
    assert sample.message
    assert arm.handle.alive()
    with pytest.raises(BusProcessError, match="cannot be reached"):
        arm.handle.clear_fault()
    arm.wait_for_watchdog()
    goals = arm.motors.goals
    stale = arm.sample().joints.t_ns
    arm.emulator.connect()
    sample = arm.wait(lambda s: s.joints.t_ns > stale, "samples again")
    assert sample.fault is Fault.PORT, "stays latched"
    arm.command(0.9)
    assert arm.still()
    np.testing.assert_allclose(arm.motors.goals, goals, atol=3e-3)
    arm.handle.clear_fault()
    assert arm.wait(lambda s: s.fault is Fault.NONE, "cleared").phase is Phase.HOLD
    arm.handle.disable()
    arm.wait(lambda s: not s.torque, "let down")


def test_silent_motor_is_a_fault_that_names_it(arm: Arm) -> None:
    arm.handle.enable()
    arm.emulator.set_faults(EmulatorFaults(silent_ids=frozenset({3})))
    sample = arm.wait(lambda s: s.fault is Fault.MOTOR, "the fault")
    assert "elbow_flex" in sample.message
    assert sample.lost > 0


def test_hardware_error_holds_the_others(tmp_path: Path) -> None:
    motors = FirstOrderBackend(time_constant_s=0.02)
    motors.place(np.full(6, START))
    with ServoEmulator(KOCH_FOLLOWER, motors) as emulator:
        arm = Arm(BusHandle(config(emulator, tmp_path)), emulator, motors)
        arm.handle.start()
        try:
            arm.enable_and_move()
            emulator.set_faults(EmulatorFaults(hardware_error={2: 0x20}))
            sample = arm.wait(lambda s: s.fault is Fault.HARDWARE, "the fault")
            assert "motor 2: 0x20" in sample.message
            arm.wait(lambda s: s.phase is Phase.HOLD, "the others hold")
            with pytest.raises(BusProcessError, match="hardware error"):
                arm.handle.clear_fault()
        finally:
            arm.handle.stop(timeout_s=1.0)


def test_lost_replies_are_asked_for_again_and_counted(arm: Arm) -> None:
    arm.handle.enable()
    arm.emulator.set_faults(EmulatorFaults(drop=0.01))
    begun = arm.sample()
    recovered = int(begun.counters.recovered.sum())
    sample = arm.wait(
        lambda s: s.lost > begun.lost + 3 and int(s.counters.recovered.sum()) > recovered, "losses"
    )
    assert sample.fault is Fault.NONE


def test_arm_that_is_not_there_is_a_fault_not_a_crash(tmp_path: Path) -> None:
    handle = BusHandle(
        BusConfig(port=str(tmp_path / "no-port"), run_dir=tmp_path, servo=SERVO, realtime=RELAXED)
    )
    handle.start()
    try:
        sample = sample_when(handle, lambda _: True, "a sample")
        assert sample.fault is Fault.PORT
        assert "no-port" in sample.message
        with pytest.raises(BusProcessError, match="fault"):
            handle.enable()
    finally:
        handle.stop()
