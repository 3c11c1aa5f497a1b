"""ArmBus against the emulated bus over a pseudo-terminal: the driver unmodified, bytes and all."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from hal.bench.emulator import EmulatorConfig, ServoEmulator
from hal.bench.first_order import FirstOrderBackend
from hal.bench.wire import EmulatorFaults
from hal.calibration import RAD_PER_TICK, Calibration, JointCalibration
from hal.dynamixel.arm import KOCH_FOLLOWER, KOCH_LEADER, ArmSpec
from hal.dynamixel.bus import ArmBus, BusConfig
from hal.dynamixel.reading import METHODS, Method
from hal.errors import CalibrationError, MotorError, PortError

POSE = np.array([0.1, -0.2, 0.3, -0.4, 0.5, -0.6])
TICK = 1.01 * RAD_PER_TICK
INSTANT = EmulatorConfig(wire_time=False)
# A loaded test machine may keep a thread waiting far longer than a robot's own would.
PATIENT = BusConfig(margin_ms=50.0)


@pytest.fixture
def backend() -> FirstOrderBackend:
    motors = FirstOrderBackend(time_constant_s=0.01)
    motors.place(POSE)
    return motors


@pytest.fixture
def emulator(backend: FirstOrderBackend) -> Iterator[ServoEmulator]:
    with ServoEmulator(KOCH_FOLLOWER, backend, INSTANT) as servo:
        yield servo


def make_bus(
    emulator: ServoEmulator,
    spec: ArmSpec = KOCH_FOLLOWER,
    calibration: Calibration | None = None,
    config: BusConfig = PATIENT,
) -> ArmBus:
    return ArmBus(spec, calibration or Calibration.identity(spec), emulator.port, 1_000_000, config)


@pytest.fixture
def bus(emulator: ServoEmulator) -> Iterator[ArmBus]:
    arm = make_bus(emulator)
    arm.open()
    yield arm
    arm.close()


def settle(bus: ArmBus, goal: np.ndarray) -> None:
    bus.write_goals(goal)
    deadline = time.monotonic() + 5.0
    while np.abs(bus.read().position - goal).max() > 3 * TICK:
        assert time.monotonic() < deadline, "the motors never arrived"
        time.sleep(0.01)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("indirect_data", [None, 224])
def test_every_way_of_reading_brings_the_same_state(
    backend: FirstOrderBackend, method: Method, indirect_data: int | None
) -> None:
    backend.heat(4, 41.0)
    config = EmulatorConfig(wire_time=False, indirect_data=indirect_data)
    with ServoEmulator(KOCH_FOLLOWER, backend, config) as servo:
        arm = make_bus(servo, config=BusConfig(margin_ms=50.0, read_method=method))
        arm.open()
        first, second = arm.read(), arm.read()
        assert arm.stats.method == method
        assert {info.block_address for info in arm.motors[2:]} == {indirect_data or 208}
        arm.close()
    assert first.position == pytest.approx(POSE, abs=TICK)
    assert first.temperature.tolist() == [30, 30, 30, 30, 41, 30]
    assert first.voltage == pytest.approx([5.0] * 6)
    assert first.hardware_error.tolist() == [0] * 6
    assert not first.moving.any()
    assert (second.seq, first.seq) == (2, 1)
    assert second.t_ns > first.t_ns
    assert first.age_ns.tolist() == [0] * 6


def test_velocity_and_effort_carry_their_units_and_sign(bus: ArmBus, backend: FirstOrderBackend) -> None:
    bus.set_torque(True)
    backend.set_time_constant(1000.0)
    goal = POSE + np.array([1.0, -1.0, 0.5, -0.5, 0.25, -0.25])
    bus.write_goals(goal)
    state = bus.read()
    assert state.velocity == pytest.approx((goal - POSE) / 1000.0, abs=0.024)
    backend.set_time_constant(1.0)
    state = bus.read()
    assert state.velocity == pytest.approx(goal - POSE, abs=0.05)
    assert state.effort == pytest.approx(0.2 * (goal - POSE), abs=0.005)
    assert state.moving.all()


def test_enabling_torque_holds_the_arm_where_it_is(bus: ArmBus, backend: FirstOrderBackend) -> None:
    bus.set_torque(True)
    settle(bus, np.zeros(6))
    bus.set_torque(False)
    assert not backend.torque.any()
    backend.place(POSE)  # moved by hand: the motors' goal registers still say 0
    bus.set_torque(True)
    assert backend.torque.all()
    assert bus.torque().all()
    time.sleep(0.1)
    assert bus.read().position == pytest.approx(POSE, abs=TICK)


def test_goals_move_the_arm_and_are_clipped_to_the_calibrated_range(emulator: ServoEmulator) -> None:
    joints = dict(Calibration.identity(KOCH_FOLLOWER).joints)
    joints["elbow_flex"] = JointCalibration(
        id=3, drive_mode=0, homing_offset=0, range_min=1500, range_max=2500
    )
    arm = make_bus(emulator, calibration=Calibration(joints))
    arm.open()
    arm.set_torque(True)
    settle(arm, np.array([-0.3, 0.3, -0.3, 0.3, -0.3, 0.3]))
    assert arm.stats.clipped == 0
    arm.write_goals(np.array([0.0, 0.0, 3.0, 0.0, 0.0, 0.0]))
    assert arm.stats.clipped == 1
    deadline = time.monotonic() + 5.0
    while arm.read().position[2] < 452 * RAD_PER_TICK - 3 * TICK and time.monotonic() < deadline:
        time.sleep(0.01)
    assert arm.read().position[2] == pytest.approx(452 * RAD_PER_TICK, abs=3 * TICK)
    arm.close()


def test_goals_that_make_no_sense_are_refused(bus: ArmBus) -> None:
    with pytest.raises(ValueError, match="finite"):
        bus.write_goals(np.array([0.0, np.nan, 0, 0, 0, 0]))
    with pytest.raises(ValueError, match="6 goals"):
        bus.write_goals(np.zeros(5))


def test_a_reversed_offset_joint_moves_within_its_own_angles(
    emulator: ServoEmulator, backend: FirstOrderBackend
) -> None:
    joints = dict(Calibration.identity(KOCH_FOLLOWER).joints)
    joints["elbow_flex"] = JointCalibration(
        id=3, drive_mode=1, homing_offset=4596, range_min=1000, range_max=3600
    )
    calibration = Calibration(joints)
    arm = make_bus(emulator, calibration=calibration)
    arm.open()
    # c = −r + 4596: the motor's 0.3 rad (tick 2244) is calibrated tick 2352.
    assert arm.read().position[2] == pytest.approx((2352 - 2048) * RAD_PER_TICK, abs=TICK)
    arm.set_torque(True)
    settle(arm, np.array([0.0, 0.0, 0.5, 0.0, 0.0, 0.0]))
    raw = 2048 + backend.read().position[2] / RAD_PER_TICK
    assert 4596 - raw == pytest.approx(2048 + 0.5 / RAD_PER_TICK, abs=4)
    arm.close()


def test_a_joint_across_the_encoders_jump_does_not_swing_round(
    emulator: ServoEmulator, backend: FirstOrderBackend
) -> None:
    joints = dict(Calibration.identity(KOCH_FOLLOWER).joints)
    # Its zero lies at raw tick 4000, its range from raw 3000 to 5000: across 4095 → 0.
    joints["elbow_flex"] = JointCalibration(
        id=3, drive_mode=0, homing_offset=2048 - 4000, range_min=1048, range_max=3048
    )
    backend.place(np.array([0, 0, (3900 - 2048) * RAD_PER_TICK, 0, 0, 0]))
    arm = make_bus(emulator, calibration=Calibration(joints))
    arm.open()
    assert arm.motors[2].operating_mode == 4
    assert arm.read().position[2] == pytest.approx(-100 * RAD_PER_TICK, abs=TICK)
    arm.set_torque(True)
    backend.set_time_constant(0.05)
    goal = np.zeros(6)
    goal[2] = 400 * RAD_PER_TICK
    arm.write_goals(goal)
    farthest = 0.0
    deadline = time.monotonic() + 5.0
    while (position := arm.read().position[2]) < goal[2] - 3 * TICK and time.monotonic() < deadline:
        farthest = max(farthest, abs(position - goal[2]))
        time.sleep(0.01)
    assert position == pytest.approx(goal[2], abs=3 * TICK)
    assert farthest <= 501 * RAD_PER_TICK
    arm.close()


def test_eeprom_is_written_only_where_it_differs(emulator: ServoEmulator, backend: FirstOrderBackend) -> None:
    motor = emulator.motor(3)
    motor.poke("Homing_Offset", 700)  # as LeRobot leaves it
    motor.poke("Operating_Mode", 4)
    motor.poke("Startup_Configuration", 1)
    first = make_bus(emulator)
    first.open()
    assert (motor.peek("Homing_Offset"), motor.peek("Operating_Mode")) == (0, 3)
    assert (motor.peek("Startup_Configuration"), motor.peek("Return_Delay_Time")) == (0, 0)
    assert motor.peek("Position_P_Gain") == 1500
    assert emulator.motor(6).peek("Operating_Mode") == 5
    assert first.read().position == pytest.approx(POSE, abs=TICK)
    first.set_torque(True)
    first.close()
    again = make_bus(emulator)  # a restart: all is set up, and torque is not touched
    again.open()
    assert backend.torque.all()
    again.close()


def test_set_up_under_torque_is_refused(emulator: ServoEmulator, backend: FirstOrderBackend) -> None:
    first = make_bus(emulator)
    first.open()
    first.set_torque(True)
    first.close()
    emulator.motor(4).poke("Homing_Offset", 700)
    with pytest.raises(MotorError, match=r"motor 4 \(wrist_flex\) must be set up .* torque is on; support"):
        make_bus(emulator).open()
    assert emulator.motor(4).peek("Homing_Offset") == 700
    assert backend.torque.all()


def test_a_missing_motor_is_named_with_its_joint_and_a_remedy(emulator: ServoEmulator) -> None:
    emulator.set_faults(EmulatorFaults(silent_ids=frozenset({3})))
    arm = make_bus(emulator)
    with pytest.raises(MotorError) as caught:
        arm.open()
    assert str(caught.value) == (
        f"motor 3 (elbow_flex) does not answer on {emulator.port} at 1000000 baud;"
        " check its power and cable, or its id with `ratchet doctor`"
    )
    assert not arm.is_open
    emulator.set_faults(EmulatorFaults())
    arm.open()  # the port was let go
    arm.close()


def test_no_motor_at_all_points_at_the_power(emulator: ServoEmulator) -> None:
    emulator.set_faults(EmulatorFaults(silent_ids=frozenset(range(7))))
    with pytest.raises(MotorError, match=r"no motor of koch_follower answers .* power supply"):
        make_bus(emulator).open()


def test_the_wrong_baud_rate_points_at_the_baud_rate(emulator: ServoEmulator) -> None:
    arm = ArmBus(
        KOCH_FOLLOWER, Calibration.identity(KOCH_FOLLOWER), emulator.port, 57_600, BusConfig(attempts=1)
    )
    with pytest.raises(MotorError, match=r"no motor .* at 57600 baud; .*baud rate"):
        arm.open()


def test_the_wrong_model_is_named(emulator: ServoEmulator) -> None:
    with pytest.raises(
        MotorError, match=r"motor 1 \(shoulder_pan\) is xl430-w250, not xl330-m077; .*swapped"
    ):
        make_bus(emulator, KOCH_LEADER).open()


def test_firmware_without_a_bus_watchdog_is_refused(backend: FirstOrderBackend) -> None:
    with (
        ServoEmulator(KOCH_FOLLOWER, backend, EmulatorConfig(wire_time=False, firmware=37)) as servo,
        pytest.raises(MotorError, match=r"firmware 37; 38 is needed .*; update it"),
    ):
        make_bus(servo).open()


def test_a_calibration_of_another_arm_is_refused_before_the_port_is_touched() -> None:
    joints = {"elbow_flex": Calibration.identity(KOCH_FOLLOWER).joints["elbow_flex"]}
    with pytest.raises(CalibrationError):
        ArmBus(KOCH_FOLLOWER, Calibration(joints), "/dev/none", 1_000_000)


def test_a_hardware_error_is_seen_and_keeps_torque_off(
    bus: ArmBus, emulator: ServoEmulator, backend: FirstOrderBackend
) -> None:
    bus.set_torque(True)
    emulator.set_faults(EmulatorFaults(hardware_error={2: 0x24}))
    assert bus.read().hardware_error.tolist() == [0, 0x24, 0, 0, 0, 0]
    assert not backend.torque[1]
    bus.set_torque(False)
    with pytest.raises(
        MotorError, match=r"motor 2 \(shoulder_lift\) reports overheating, overload; let it cool"
    ):
        bus.set_torque(True)
    assert not backend.torque.any()


def test_the_watchdog_stops_the_arm_when_the_bus_falls_silent(
    bus: ArmBus, backend: FirstOrderBackend
) -> None:
    bus.set_torque(True)
    bus.arm_watchdog(60)
    backend.set_time_constant(100.0)
    bus.write_goals(np.full(6, 1.0))
    time.sleep(0.4)
    assert bus.watchdog_tripped() == KOCH_FOLLOWER.joints
    stopped = backend.goals
    assert stopped == pytest.approx(POSE, abs=0.05)
    bus.write_goals(np.full(6, 1.0))
    bus.read()
    assert backend.goals.tolist() == stopped.tolist()
    bus.clear_watchdog()
    assert bus.watchdog_tripped() == ()
    assert backend.goals == pytest.approx(stopped, abs=0.05)
    bus.write_goals(np.full(6, 0.2))
    bus.read()
    assert backend.goals == pytest.approx(np.full(6, 0.2), abs=TICK)


def test_a_disarmed_watchdog_does_not_trip(bus: ArmBus) -> None:
    bus.set_torque(True)
    bus.arm_watchdog(100)
    bus.disarm_watchdog()
    time.sleep(0.3)
    assert bus.watchdog_tripped() == ()


def test_enabling_after_a_trip_clears_it_without_a_jump(bus: ArmBus, backend: FirstOrderBackend) -> None:
    bus.set_torque(True)
    settle(bus, np.zeros(6))
    bus.arm_watchdog(20)
    time.sleep(0.3)
    bus.set_torque(False)
    backend.place(POSE)
    bus.set_torque(True)
    assert bus.watchdog_tripped() == ()
    assert backend.goals == pytest.approx(POSE, abs=TICK)


@pytest.mark.parametrize("timeout_ms", [0, 2541])
def test_a_watchdog_time_that_motors_do_not_have_is_refused(bus: ArmBus, timeout_ms: int) -> None:
    with pytest.raises(ValueError, match="20 to 2540 ms"):
        bus.arm_watchdog(timeout_ms)


def test_the_leader_arm_reads_too(backend: FirstOrderBackend) -> None:
    with ServoEmulator(KOCH_LEADER, backend, INSTANT) as servo:
        arm = make_bus(servo, KOCH_LEADER)
        arm.open()
        assert arm.read().position == pytest.approx(POSE, abs=TICK)
        arm.close()


def test_a_bus_that_is_not_open_says_so(emulator: ServoEmulator) -> None:
    with pytest.raises(PortError, match="is not open; call open"):
        make_bus(emulator).read()
