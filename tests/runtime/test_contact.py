"""A block in the way stops the arm in time and is named; ordinary motion, grasps included, is not stopped."""

from __future__ import annotations

import re

import numpy as np
import pytest
from pydantic import ValidationError

from hal.types import JOINTS
from runtime.contact import FOLLOWER_MODELS, MOTORS, ContactConfig, ContactDetector
from runtime.servo import HoldCause, Phase, ServoConfig
from tests.runtime.servo_bench import joints
from tools.bench.contact import figures
from tools.bench.contact_motion import Bench, min_jerk
from tools.bench.contact_part import against_blocks, ordinary_motion

LIMIT_MS = 150.0
DT = 1.0 / 240.0


@pytest.fixture(scope="module")
def trials() -> list[dict[str, object]]:
    return against_blocks(40, 10_000, 1)


def test_a_blocked_arm_stops_within_150_ms_of_the_touch(trials: list[dict[str, object]]) -> None:
    assert len(trials) == 40
    late = [t for t in trials if t["stop_ms"] is None or t["stop_ms"] > LIMIT_MS]  # type: ignore[operator]
    assert not late
    assert not any(t["early"] for t in trials)
    assert {"shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex"} <= {t["joint"] for t in trials}
    assert (
        min(float(str(t["speed"])) for t in trials) < -1.0 < 1.0 < max(float(str(t["speed"])) for t in trials)
    )


def test_the_stop_names_the_joint_and_its_residual(trials: list[dict[str, object]]) -> None:
    assert all(t["reported"] in JOINTS[:-1] for t in trials)
    assert all(float(str(t["residual"])) >= 1.0 for t in trials)
    named = [t["reported"] == t["joint"] for t in trials]
    assert np.mean(named) > 0.7, "mostly the joint that drives; a block can press harder on a weaker one"


def test_ordinary_motion_is_not_stopped() -> None:
    """Ten minutes: demonstrations with grasps, policy-like and fast motion, motors worn and warm."""
    quiet = ordinary_motion(1 / 6, 50_000, 1)
    assert quiet.stops == []
    assert quiet.grasps > 0.5 * quiet.stretches, "it really grasped"


def test_the_figures_add_up(trials: list[dict[str, object]]) -> None:
    rows = [dict(t) for t in trials[:3]]
    rows[0].update(stop_ms=None, still_ms=None, reported="none")
    stop = {"seed": 1, "motion": "Free", "joint": "elbow_flex", "tick": 3, "residual": 1.2}
    part = {"hours": 0.5, "stretches": 4, "grasps": 2, "stops": [stop], "trials": rows}
    found = figures([part, {**part, "stops": []}])
    assert (found["hours"], found["false_stops_per_hour"]) == (1.0, 1.0)
    assert (found["trials"], found["stopped"], found["missed"]) == (6, 4, 2)
    assert found["held"] == {"stop_ms_max": False, "false_stops_per_hour": False, "all": False}


def test_the_residual_stays_reported_while_it_holds() -> None:
    """The control loop looks only now and then, after the freeze has taken the force away."""
    bench = Bench(ServoConfig(ramp_s=0.0))
    bench.begin(np.array([0.0, 0.0, -0.4, 1.2, 0.0, 0.5]))
    bench.world.place_cube(-0.2, 0.2, 0.0)
    x, y, z = bench.world.fingers.mean(axis=0)
    bench.world.obstruct((x, y + 0.12, z))
    target = bench.core.goal
    target[0] += 1.0
    path = min_jerk(bench.core.goal, target, 1.5)
    steps = [bench.tick(goal) for goal in path + [path[-1]] * 15]
    held = [step for step in steps if step.cause is HoldCause.CONTACT]
    assert len(held) > 5
    assert {step.phase for step in held} == {Phase.HOLD}
    assert len({(step.contact_joint, step.residual) for step in held}) == 1
    assert held[0].contact_joint == 0
    assert held[0].residual >= 1.0
    assert np.abs(np.diff([step.goal for step in held], axis=0)).max() == 0.0


def press(detector: ContactDetector, joint: int, effort: float, speed: float = 0.0, steps: int = 60) -> int:
    """A joint told to move at 1 rad/s moves at ``speed`` and reports ``effort``; steps until contact."""
    goal, asked, position, velocity, efforts = (np.zeros(6) for _ in range(5))
    detector.reset(joints(0, position))
    asked[joint], velocity[joint], efforts[joint] = 1.0, speed, effort
    for step in range(steps):
        goal[joint] += asked[joint] * DT
        position[joint] += speed * DT
        if detector.update(goal, asked, joints(step, position, velocity, efforts)) >= 0:
            return step
    return steps


@pytest.mark.parametrize("joint", range(5))
def test_scales_belong_to_the_motor_model(joint: int) -> None:
    scale = MOTORS[FOLLOWER_MODELS[joint]].scale
    assert press(ContactDetector(ContactConfig(), DT), joint, 1.3 * scale) < 40
    assert press(ContactDetector(ContactConfig(), DT), joint, 0.9 * scale) == 60


def test_a_joint_that_moves_as_told_is_not_blocked() -> None:
    model = MOTORS["xl430-w250"]
    effort = 3.0 * model.scale + model.back_emf
    assert press(ContactDetector(ContactConfig(), DT), 0, effort, speed=1.0) == 60


def test_the_gripper_may_push() -> None:
    assert press(ContactDetector(ContactConfig(), DT), 5, 1.4) == 60
    assert press(ContactDetector(ContactConfig(ignore=()), DT), 5, 1.4) < 40


def test_a_partial_table_keeps_the_other_defaults() -> None:
    config = ContactConfig.model_validate({"motors": {"xl430-w250": {"scale": 0.5}}})
    assert config.motors["xl430-w250"].scale == 0.5
    assert config.motors["xl430-w250"].back_emf == MOTORS["xl430-w250"].back_emf
    assert config.motors["xl330-m288"] == MOTORS["xl330-m288"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"scale": [0.6] * 6}, "scale"),
        ({"motors": {"xl430-w250": {"force": 1.0}}}, "force"),
        ({"motors": {"xl430-w250": {"scale": 0.0}}}, "greater than 0"),
        ({"motors": {"other": {"back_emf": 0.1}}}, "scale"),
        ({"ignore": ["thumb"]}, "no joint thumb"),
        ({"motors": 3}, "motors"),
    ],
)
def test_a_wrong_table_is_refused(given: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(says)):
        ContactConfig.model_validate(given)


def test_an_arm_of_unknown_motors_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no contact scale for xm540.*servo\.contact\.motors\.xm540"):
        ContactDetector(ContactConfig(), DT, ("xm540",) * 6)
