"""Calibration files in LeRobot's layout, and the angles they mean."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.calibration import RAD_PER_TICK, Calibration, JointCalibration
from hal.dynamixel.arm import KOCH_FOLLOWER, ArmSpec
from hal.dynamixel.bringup import working_mode
from hal.errors import CalibrationError
from hal.types import JOINTS

LEROBOT = {
    joint: {"id": i + 1, "drive_mode": 0, "homing_offset": 0, "range_min": 1000, "range_max": 3000}
    for i, joint in enumerate(JOINTS)
}


def entry(**changes: int) -> JointCalibration:
    return JointCalibration.model_validate({**LEROBOT["elbow_flex"], **changes})


def calibration(**changes: int) -> Calibration:
    return Calibration({"elbow_flex": entry(**changes)})


def test_zero_rad_is_tick_2048_and_the_file_survives_a_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "koch.json"
    path.write_text(json.dumps(LEROBOT))
    loaded = Calibration.load(path)
    loaded.check(KOCH_FOLLOWER)
    assert loaded.to_ticks(np.zeros(6)).tolist() == [2048] * 6
    loaded.save(tmp_path / "again" / "koch.json")
    assert json.loads((tmp_path / "again" / "koch.json").read_text()) == LEROBOT
    assert [p.name for p in (tmp_path / "again").iterdir()] == ["koch.json"]


def test_offset_and_direction_stay_in_software() -> None:
    turned = calibration(drive_mode=1, homing_offset=4000)
    # c = −r + 4000: tick 1952 is the zero, and a rising tick lowers the angle.
    assert turned.to_rad(np.array([1952])).tolist() == [0.0]
    assert turned.to_rad(np.array([2952]))[0] == pytest.approx(-1000 * RAD_PER_TICK)
    assert turned.limits_rad.tolist() == [[-1048 * RAD_PER_TICK, 952 * RAD_PER_TICK]]


@given(st.integers(0, 4095), st.integers(-4096, 4096), st.sampled_from([0, 1]), st.integers(-2, 2))
def test_ticks_to_rad_and_back_is_exact(tick: int, offset: int, drive_mode: int, turn: int) -> None:
    one = calibration(homing_offset=offset, drive_mode=drive_mode)
    ticks = np.array([tick + 4096 * turn])
    assert one.to_ticks(one.to_rad(ticks)).tolist() == ticks.tolist()


@given(st.integers(1000, 3000), st.integers(-4096, 4096), st.sampled_from([0, 1]), st.integers(-2, 2))
def test_a_joint_within_its_range_is_found_there_whatever_turn_its_encoder_counts(
    calibrated: int, offset: int, drive_mode: int, turn: int
) -> None:
    one = calibration(homing_offset=offset, drive_mode=drive_mode)
    ticks = one.sign * (calibrated - offset) + 4096 * turn
    unwrapped = ticks - one.sign * one.turns(ticks) * 4096
    assert one.to_rad(unwrapped)[0] == pytest.approx((calibrated - 2048) * RAD_PER_TICK)


def test_goals_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        calibration().to_ticks([math.nan])


def test_a_range_across_the_encoders_jump_wants_extended_position_mode() -> None:
    elbow = KOCH_FOLLOWER.motors[2]
    assert not calibration().crosses_encoder_zero(0)
    assert calibration(homing_offset=1500).crosses_encoder_zero(0)
    assert not calibration(homing_offset=4096).crosses_encoder_zero(0)
    assert working_mode(elbow, crosses_encoder_zero=True) == 4
    assert working_mode(elbow, crosses_encoder_zero=False) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "must map joint names"),
        ('{"shoulder_pan": {}}', "lacks shoulder_lift"),
        (json.dumps({**LEROBOT, "tail": {}}), "unknown joints tail"),
        (json.dumps({**LEROBOT, "gripper": {"id": 6}}), r"gripper\.drive_mode: Field required"),
        (json.dumps({**LEROBOT, "gripper": {**LEROBOT["gripper"], "range_max": 900}}), "not below"),
        (
            json.dumps({**LEROBOT, "gripper": {**LEROBOT["gripper"], "homing_offset": 1.5}}),
            r"gripper\.homing",
        ),
        (json.dumps({**LEROBOT, "gripper": {**LEROBOT["gripper"], "spare": 1}}), r"gripper\.spare"),
        ("[" * 60_000, "not valid JSON"),
        (" " * 70_000, "too large"),
    ],
)
def test_a_bad_file_says_what_is_wrong_and_what_to_do(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "koch.json"
    path.write_text(content)
    with pytest.raises(CalibrationError, match=message) as caught:
        Calibration.load(path)
    assert str(path) in str(caught.value)
    assert "ratchet calibrate" in caught.value.remedy
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"there is no calibration .*; run `ratchet calibrate`"):
        Calibration.load(tmp_path / "none.json")


def test_a_calibration_of_another_arm_is_refused() -> None:
    swapped = ArmSpec(
        name="swapped",
        motors=tuple(m.model_copy(update={"id": 7 - m.id}) for m in KOCH_FOLLOWER.motors),
    )
    with pytest.raises(CalibrationError, match="shoulder_pan on motor 1, swapped on motor 6"):
        Calibration.identity(KOCH_FOLLOWER).check(swapped)
    with pytest.raises(CalibrationError, match="is for the joints elbow_flex"):
        calibration().check(KOCH_FOLLOWER)
