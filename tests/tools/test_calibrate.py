"""`ratchet calibrate` on an emulated arm that is moved by hand, and `ratchet doctor` on the same."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hal.bench.emulator import ServoEmulator
from hal.bench.first_order import FirstOrderBackend
from hal.calibration import RAD_PER_TICK, Calibration
from hal.dynamixel.arm import KOCH_FOLLOWER, KOCH_LEADER
from hal.errors import CalibrationError
from tests.tools.acting import call
from tools.calibration_notes import rest_notes
from tools.errors import UsageError

MIDDLE = np.array([0.3, -0.2, 0.1, 0.0, 2.9, 0.4])  # the roll stands near its encoder's jump
BELOW = np.array([0.0, 0.9, 0.8, 0.7, 0.0, 0.5])
ABOVE = np.array([0.0, 0.6, 1.0, 0.9, 0.6, 0.4])
TICK = 2.01 * RAD_PER_TICK


class Hand:
    """Moves the emulated leader in small steps, as a hand does."""

    def __init__(self, motors: FirstOrderBackend) -> None:
        self.motors = motors
        self.at = MIDDLE.copy()
        motors.place(self.at)

    def go(self, to: np.ndarray) -> None:
        for share in np.linspace(0.0, 1.0, 12)[1:]:
            self.motors.place(self.at + share * (to - self.at))
            time.sleep(0.06)
        self.at = to


@pytest.fixture
def hand() -> Iterator[tuple[Hand, ServoEmulator]]:
    motors = FirstOrderBackend(time_constant_s=0.02)
    with ServoEmulator(KOCH_LEADER, motors) as emulator:
        yield Hand(motors), emulator


def start(emulator: ServoEmulator, out: Path) -> subprocess.Popen[str]:
    arguments = ["calibrate", "leader", "--port", emulator.port, "--out", str(out)]
    return subprocess.Popen(
        [sys.executable, "-m", "tools.cli", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_until(process: subprocess.Popen[str], words: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            return
    pytest.fail(f"it ended before it said {words!r}")


def enter(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_moved_by_hand_and_interrupted_once_it_knows_zero_and_ranges(
    hand: tuple[Hand, ServoEmulator], tmp_path: Path
) -> None:
    arm, emulator = hand
    out = tmp_path / "koch_leader.json"
    first = start(emulator, out)
    read_until(first, "middle of all its ranges")
    enter(first)
    read_until(first, "end to end")
    arm.go(MIDDLE - BELOW)
    arm.go(MIDDLE)
    enter(first)  # too early: no joint went up
    read_until(first, "fold the arm")
    enter(first)
    said, error = first.communicate(timeout=30)
    # Every joint moved far enough downwards to count, so this run already gives a calibration, and a remark.
    assert first.returncode == 0, error
    assert "shoulder_lift: what was shown as its middle lies at one end" in said
    half = Calibration.load(out)
    assert half.limits_rad[1][1] == pytest.approx(0.0, abs=TICK)
    again = start(emulator, out)
    read_until(again, "middle of all its ranges")
    enter(again)
    read_until(again, "end to end")
    arm.go(MIDDLE + ABOVE)
    time.sleep(1.2)  # progress is kept once a second
    again.kill()
    again.communicate(timeout=30)
    third = start(emulator, out)
    read_until(third, "interrupted")
    read_until(third, "end to end")
    arm.go(MIDDLE)
    arm.go(MIDDLE - BELOW)
    arm.go(MIDDLE + np.array([0.0, -0.9, -0.8, 0.0, 0.0, 0.0]))
    enter(third)
    read_until(third, "fold the arm")
    enter(third)
    said, error = third.communicate(timeout=30)
    assert third.returncode == 0, error
    assert "turns the other way" not in said, "the leader's elbow counts the other way round, as it should"
    assert "elbow_flex: counts the other way round" in said
    assert "gripper: LeRobot's 0 … 100 is -0.50 … +0.40 rad" in said
    found = Calibration.load(out)
    found.check(KOCH_LEADER)
    assert found.joints["elbow_flex"].drive_mode == 1
    ticks = np.rint(MIDDLE / RAD_PER_TICK).astype(np.int64) + 2048
    np.testing.assert_allclose(found.to_rad(ticks), 0.0, atol=TICK)
    for i, joint in enumerate(found.joints):
        if joint in ("shoulder_pan", "wrist_roll"):
            assert (found.joints[joint].range_min, found.joints[joint].range_max) == (0, 4095)
            continue
        low, high = (-BELOW[i], ABOVE[i]) if joint != "elbow_flex" else (-ABOVE[i], BELOW[i])
        np.testing.assert_allclose(found.limits_rad[i], (low, high), atol=TICK)
    assert not out.with_suffix(".progress").exists()


def test_a_joint_that_was_forgotten_is_named_and_the_rest_is_kept(
    hand: tuple[Hand, ServoEmulator], tmp_path: Path
) -> None:
    arm, emulator = hand
    out = tmp_path / "koch_leader.json"
    process = start(emulator, out)
    read_until(process, "middle of all its ranges")
    enter(process)
    read_until(process, "end to end")
    move = BELOW.copy()
    move[3] = 0.0
    arm.go(MIDDLE - move)
    enter(process)
    read_until(process, "not moved far enough yet: wrist_flex (0°)")
    _, error = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "wrist_flex" in error
    assert "gripper" not in error
    assert not out.exists()
    assert out.with_suffix(".progress").exists()


def test_a_file_is_checked(tmp_path: Path) -> None:
    sound = tmp_path / "sound.json"
    Calibration.identity(KOCH_FOLLOWER).save(sound)
    assert "sound" in call("calibrate", "--check", sound).stdout
    data = json.loads(sound.read_text())
    data["elbow_flex"]["range_min"] = 5000
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(data))
    assert isinstance(call("calibrate", "--check", bad).exception, CalibrationError)
    assert isinstance(call("calibrate").exception, UsageError)


LEROBOT = """{
    "shoulder_pan": {
        "id": 1,
        "drive_mode": 0,
        "homing_offset": -1022,
        "range_min": 0,
        "range_max": 4095
    },
    "shoulder_lift": {
        "id": 2,
        "drive_mode": 0,
        "homing_offset": 1025,
        "range_min": 878,
        "range_max": 3160
    },
    "elbow_flex": {
        "id": 3,
        "drive_mode": 1,
        "homing_offset": 2047,
        "range_min": 920,
        "range_max": 3077
    },
    "wrist_flex": {
        "id": 4,
        "drive_mode": 0,
        "homing_offset": 37,
        "range_min": 887,
        "range_max": 3210
    },
    "wrist_roll": {
        "id": 5,
        "drive_mode": 0,
        "homing_offset": 0,
        "range_min": 0,
        "range_max": 4095
    },
    "gripper": {
        "id": 6,
        "drive_mode": 0,
        "homing_offset": -500,
        "range_min": 1902,
        "range_max": 2506
    }
}
"""


def test_lerobots_file_loads_is_explained_and_saves_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "lerobot.json"
    path.write_text(LEROBOT)
    said = call("calibrate", "leader", "--check", path).stdout
    assert "wrist_roll: keeps the whole turn" in said
    assert "elbow_flex: counts the other way round" in said
    # 878 - 1025 < 0 <= 3160 - 1025: the motor's own ticks run through the jump.
    assert "shoulder_lift: its range passes the point" in said
    assert "wrist_flex: its range" not in said
    calibration = Calibration.load(path)
    calibration.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == LEROBOT
    # LeRobot's middle is 2047: with drive_mode 1 the motor stands at 0 there, and c = -r + offset.
    assert abs(calibration.to_rad(np.array([3069, 1022, 0, 2010, 2047, 2547]))).max() < TICK


def test_a_joint_that_counts_the_other_way_is_named_with_both_remedies() -> None:
    rest = (0.0, -1.55, 1.65, 0.35, 0.0)
    assert list(rest_notes(np.array([0.1, -1.4, 1.5, 0.2, 0.0, 0.4]), rest, leader=False)) == []
    (opposite, place) = rest_notes(np.array([0.1, 1.4, 1.5, 0.2, 0.0, 0.4]), rest, leader=False)
    assert "shoulder_lift: turns the other way" in opposite
    assert "--invert shoulder_lift" in opposite
    assert "rest_pose = [0.10, 1.40, 1.50, 0.20, 0.00]" in place
    elsewhere, place = rest_notes(np.array([1.2, -1.4, 1.5, 0.2, 0.0, 0.4]), rest, leader=False)
    assert "shoulder_pan" in elsewhere
    assert list(rest_notes(np.array([1.2, -1.4, 1.5, 0.2, 0.0, 0.4]), rest, leader=True)) == []


def config(tmp_path: Path, follower: str, leader: str, baud: int = 1_000_000) -> Path:
    path = tmp_path / "ratchet.toml"
    path.write_text(
        f'run_dir = "{tmp_path}/run"\n[remote]\naddress = "unix:{tmp_path}/c.sock"\nplaintext = true\n'
        f'[store]\npath = "{tmp_path}/episodes"\n'
        f'[follower]\nport = "{follower}"\nbaud = {baud}\nuncalibrated = true\n'
        f'[leader]\nport = "{leader}"\nuncalibrated = true\n'
        '[cameras.front]\nsource = "/dev/no-such-camera"\n'
    )
    return path


def findings(path: Path) -> dict[str, dict[str, str]]:
    result = call("doctor", "--config", path, "--no-drawing", "--json")
    return {finding["what"]: finding for finding in json.loads(result.stdout)}


def test_the_doctor_knows_the_arms_and_what_is_wrong_with_them(tmp_path: Path) -> None:
    motors = FirstOrderBackend()
    with (
        ServoEmulator(KOCH_FOLLOWER, motors) as follower,
        ServoEmulator(KOCH_LEADER, FirstOrderBackend()) as leader,
    ):
        sound = findings(config(tmp_path, follower.port, leader.port))
        assert sound["follower motors"]["verdict"] == sound["leader motors"]["verdict"] == "ok"
        assert sound["camera front"]["verdict"] == "problem"
        assert sound["camera front"]["remedy"]
        swapped = findings(config(tmp_path, leader.port, follower.port))
        assert "swapped" in swapped["follower motors"]["remedy"]
        slow = findings(config(tmp_path, follower.port, "/dev/nowhere", baud=57_600))
        assert "1000000" in slow["follower motors"]["detail"]
        assert slow["leader port"]["verdict"] == "problem"
    assert {"disk", "clock", "real-time priority", "memory lock"} <= set(sound)


def test_the_doctor_ends_with_one_when_there_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "ratchet.toml"
    path.write_text('[follower]\nport = "/dev/nowhere"\nuncalibrated = true\nbuad = 9600\n')
    result = call("doctor", "--config", path, "--no-drawing")
    assert result.exit_code == 1
    assert "did you mean 'baud'" in result.stdout


def test_init_writes_a_configuration_that_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "ratchet.toml"
    assert call("init", path).exit_code == 0
    assert isinstance(call("init", path).exception, UsageError)
    assert call("init", path, "--force").exit_code == 0
    found = json.loads(call("doctor", "--config", path, "--no-drawing", "--json").stdout)
    assert found[0]["what"] == "configuration"
    assert found[0]["verdict"] == "ok"
    assert isinstance(call("init", tmp_path / "b.toml", "--sim", "--dir", tmp_path).exception, UsageError)
