"""Finding motors and giving them ids, with ROBOTIS' SDK against the emulated bus."""

from __future__ import annotations

from pathlib import Path

import pytest

from hal.bench.emulator import EmulatorConfig, ServoEmulator
from hal.bench.first_order import FirstOrderBackend
from hal.dynamixel.arm import KOCH_FOLLOWER, KOCH_LEADER, ArmSpec, MotorSpec
from hal.dynamixel.setup import assign, scan
from hal.errors import MotorError, PortError

NEW_MOTOR = ArmSpec(name="new", motors=(MotorSpec(joint="fresh", id=1, model_name="xl330-m288"),))
FACTORY = EmulatorConfig(baud=57_600, wire_time=False)


def test_scan_finds_every_motor_with_its_model_and_rate() -> None:
    with ServoEmulator(KOCH_FOLLOWER, FirstOrderBackend(), EmulatorConfig(wire_time=False)) as servo:
        found = scan(servo.port, (57_600, 1_000_000))
    assert [(m.id, m.baud, m.model, m.firmware) for m in found] == [
        (motor.id, 1_000_000, motor.model_name, 52) for motor in KOCH_FOLLOWER.motors
    ]


def test_assign_gives_a_new_motor_its_id_and_rate() -> None:
    with ServoEmulator(NEW_MOTOR, FirstOrderBackend(1), FACTORY) as servo:
        now = assign(servo.port, KOCH_FOLLOWER.motors[4], bauds=(57_600,))
        assert (now.id, now.baud, now.model) == (5, 1_000_000, "xl330-m288")
        assert servo.motor(5).peek("Baud_Rate") == 3


def test_assign_refuses_what_it_must_not_touch() -> None:
    with ServoEmulator(NEW_MOTOR, FirstOrderBackend(1), FACTORY) as servo:
        with pytest.raises(
            MotorError, match="is xl330-m288, shoulder_pan needs xl430-w250; connect that one"
        ):
            assign(servo.port, KOCH_FOLLOWER.motors[0], bauds=(57_600,))
        with pytest.raises(MotorError, match=r"no motor answers .* at any baud rate; check power"):
            assign(servo.port, KOCH_FOLLOWER.motors[4], bauds=(1_000_000,))
        assert servo.motor(1).peek("ID") == 1
    with (
        ServoEmulator(KOCH_LEADER, FirstOrderBackend(), EmulatorConfig(wire_time=False)) as servo,
        pytest.raises(MotorError, match=r"6 motors answer .*; connect only the motor to set up"),
    ):
        assign(servo.port, KOCH_LEADER.motors[0], bauds=(1_000_000,))


def test_a_missing_port_is_reported_in_our_words(tmp_path: Path) -> None:
    with pytest.raises(PortError, match="there is no serial port"):
        scan(str(tmp_path / "none"))
