"""What a calibration says, in words: what was odd about it, and what a person may want to know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from hal.calibration import Calibration
from hal.dynamixel.tables import TICKS_PER_TURN
from hal.types import JOINTS, Vector

_AT_ONE_END = 0.1  # of its range: a joint so near to an end was hardly shown in its middle
_CLEAR_RAD = 0.5  # two directions or places so far apart are not a matter of care
_ARM = JOINTS[:-1]


def notes(calibration: Calibration) -> Iterator[str]:
    """One line for each thing worth knowing about a calibration."""
    for i, (joint, row) in enumerate(calibration.joints.items()):
        low, high = (float(end) for end in calibration.limits_rad[i])
        whole = row.range_max - row.range_min >= TICKS_PER_TURN - 1
        if whole:
            yield f"{joint}: keeps the whole turn, no end was looked for"
        elif not _AT_ONE_END <= -low / (high - low) <= 1.0 - _AT_ONE_END:
            yield (
                f"{joint}: what was shown as its middle lies at one end of its range "
                f"({low:+.2f} … {high:+.2f} rad); if that was a mistake, calibrate again with --restart"
            )
        if row.drive_mode:
            yield f"{joint}: counts the other way round than its motor (drive_mode 1)"
        if calibration.crosses_encoder_zero(i):
            # The bus sees to that with the extended position mode; a person has one thing to do.
            yield (
                f"{joint}: its range passes the point where the encoder jumps from 4095 to 0; "
                "that is taken care of"
                + ("" if whole else ", but switch the arm on with this joint inside its range")
            )
        if joint == JOINTS[-1]:
            yield f"{joint}: LeRobot's 0 … 100 is {low:+.2f} … {high:+.2f} rad"


def rest_notes(shown: Vector, rest_pose: Sequence[float], leader: bool) -> Iterator[str]:
    """Compare the folded pose that was shown, rad (6,), with where the arm is let down to, rad (5,).

    A joint on the other side of its middle counts the other way than expected; one that is merely
    elsewhere matters only to the arm that is let down.
    """
    arm = np.asarray(shown)[: len(_ARM)]
    opposite = [
        joint
        for joint, at, rest in zip(_ARM, arm, rest_pose, strict=True)
        if abs(at) > _CLEAR_RAD and abs(rest) > _CLEAR_RAD and at * rest < 0
    ]
    for joint in opposite:
        i = _ARM.index(joint)
        yield (
            f"{joint}: turns the other way than expected: folded it is at {arm[i]:+.2f} rad, "
            f"[servo] rest_pose says {rest_pose[i]:+.2f}; calibrate again with --invert {joint}, "
            "or correct rest_pose (and give both arms the same direction)"
        )
    away = [
        joint
        for joint, at, rest in zip(_ARM, arm, rest_pose, strict=True)
        if abs(at - rest) > _CLEAR_RAD and joint not in opposite
    ]
    if not leader and (away or opposite):
        if away:
            yield f"{', '.join(away)}: the arm would be let down to another place than the one shown"
        yield f"to be let down where it is now: rest_pose = [{', '.join(f'{at:.2f}' for at in arm)}]"
