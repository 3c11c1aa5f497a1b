"""`ratchet doctor` on arms that have something wrong with them, on cameras and on the udev rule."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hal.bench.emulator import ServoEmulator
from hal.bench.first_order import FirstOrderBackend
from hal.bench.wire import EmulatorFaults
from hal.calibration import Calibration
from hal.dynamixel.arm import KOCH_FOLLOWER
from hal.dynamixel.bus import ArmBus
from hal.dynamixel.bus import BusConfig as ReplyConfig
from hal.types import Frame
from runtime.camera_process import CameraSpec
from tests.tools.acting import call
from tools.camera_checks import _judge
from tools.udev import RULE, udev_finding

SUPPLY = (12.0, 12.0, 5.0, 5.0, 5.0, 5.0)
SUBJECTS = ("motors", "hardware errors", "voltage", "temperature", "return delay", "settings", "torque")


class Arm:
    def __init__(self, directory: Path, emulator: ServoEmulator, motors: FirstOrderBackend) -> None:
        self.emulator, self.motors = emulator, motors
        self.path = directory / "ratchet.toml"
        self.path.write_text(
            f'run_dir = "{directory}/run"\n[remote]\naddress = "unix:{directory}/c.sock"\nplaintext = true\n'
            f'[store]\npath = "{directory}/episodes"\n'
            f'[follower]\nport = "{emulator.port}"\nuncalibrated = true\n'
        )

    def open_once(self) -> ArmBus:
        """As the service does: brings the motors up."""
        bus = ArmBus(
            KOCH_FOLLOWER,
            Calibration.identity(KOCH_FOLLOWER),
            self.emulator.port,
            1_000_000,
            ReplyConfig(margin_ms=25.0),
        )
        bus.open()
        return bus

    def findings(self) -> dict[str, dict[str, str]]:
        result = call("doctor", "--config", self.path, "--no-drawing", "--json")
        return {finding["what"]: finding for finding in json.loads(result.stdout)}


@pytest.fixture
def arm(tmp_path: Path) -> Iterator[Arm]:
    motors = FirstOrderBackend()
    motors._voltage[:] = SUPPLY
    with ServoEmulator(KOCH_FOLLOWER, motors) as emulator:
        yield Arm(tmp_path, emulator, motors)


def test_motors_fresh_from_the_box_and_after_they_were_brought_up(arm: Arm) -> None:
    fresh = arm.findings()
    assert fresh["follower return delay"]["verdict"] == "warning"
    assert "shoulder_pan" in fresh["follower return delay"]["detail"]
    assert "500 µs" in fresh["follower return delay"]["detail"]
    assert "ratchet up" in fresh["follower return delay"]["remedy"]
    assert "gripper" in fresh["follower settings"]["detail"], "its operating mode is not the factory's"
    assert arm.emulator.motor(1).peek("Return_Delay_Time") == 250, "looking changes nothing"
    bus = arm.open_once()
    bus.close()
    after = arm.findings()
    assert {after[f"follower {subject}"]["verdict"] for subject in SUBJECTS} == {"ok"}
    assert "5.0 to 12.0 V" in after["follower voltage"]["detail"]


def test_everything_that_is_wrong_is_named_with_what_to_do(arm: Arm) -> None:
    bus = arm.open_once()
    bus.set_torque(True)
    bus.close()
    arm.motors._voltage[:] = (9.9, 12.0, 5.0, 5.0, 4.2, 5.0)
    arm.motors.heat(2, 66.0)
    arm.emulator.set_faults(EmulatorFaults(silent_ids=frozenset({4}), hardware_error={2: 0x20, 6: 0x01}))
    found = arm.findings()
    missing = found["follower motors"]
    assert missing["verdict"] == "problem"
    assert "wrist_flex" in missing["detail"]
    assert "cable" in missing["remedy"]
    errors = found["follower hardware errors"]
    assert errors["verdict"] == "problem"
    assert "shoulder_lift" in errors["detail"]
    assert "overload" in errors["detail"]
    assert "gripper" in errors["detail"]
    assert "power supply" in errors["remedy"]
    voltage = found["follower voltage"]
    assert voltage["verdict"] == "warning"
    assert "9.9 V" in voltage["detail"]
    assert "12 V (11 to 12.6)" in voltage["detail"]
    assert "wrist_roll" in voltage["detail"]
    assert "4.2 V" in voltage["detail"]
    assert "66 °C" in found["follower temperature"]["detail"]
    assert "shoulder_pan" in found["follower torque"]["detail"]
    assert all(finding["remedy"] for finding in found.values() if finding["verdict"] != "ok")
    assert arm.emulator.motor(1).peek("Torque_Enable") == 1, "looking drops no arm"


SPEC = CameraSpec(source="0", width=32, height=24, fps=30)


def frames(count: int, *, repeated: bool = False, level: int = 100, stamp: bool = True) -> list[Frame]:
    image = np.full((24, 32, 3), level - 10, np.uint8)
    image[12:] = level + 10
    return [Frame("front", i, i, image, repeated, stamp) for i in range(count)]


@pytest.mark.parametrize(
    ("watched", "verdict", "words"),
    [
        (frames(30), "ok", "30 pictures/s, stamped by driver"),
        (frames(30, stamp=False), "ok", "stamped by arrival"),
        (frames(15), "warning", "15 pictures/s, stamped by driver, not 30"),
        (frames(30, repeated=True), "warning", "the same picture"),
        (frames(30, level=11), "warning", "mean brightness 11"),
    ],
)
def test_a_camera_is_watched_for_a_second(watched: list[Frame], verdict: str, words: str) -> None:
    finding = _judge("camera front", SPEC, watched[0], watched, 1.0)
    assert finding.verdict == verdict
    assert words in finding.detail


def test_the_udev_rule_is_offered_with_the_exact_command(tmp_path: Path) -> None:
    place = tmp_path / "udev" / "rules.d"
    place.mkdir(parents=True)
    absent = udev_finding((place,))
    assert absent.verdict == "warning"
    assert f"sudo cp {RULE} /etc/udev/rules.d/" in absent.remedy
    result = call("doctor", "--write-udev", place / RULE.name)
    assert "udevadm control --reload" in result.stdout
    assert udev_finding((place,)).verdict == "ok"
    (place / RULE.name).write_text("# old\n")
    assert "another version" in udev_finding((place,)).detail
