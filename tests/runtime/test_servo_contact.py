"""Contact: what efforts stop the servo core, and what happens to the goal then."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from servo_bench import DT, QUICK, Bench

from runtime.contact import ContactConfig
from runtime.servo import HoldCause, Phase, ServoConfig, Verdict


def press(joint: int, effort: float, config: ServoConfig = QUICK) -> tuple[Bench, Any]:
    """Drive into something that stops every joint, ``joint`` reporting ``effort`` while it pushes."""
    bench = Bench(config).start()
    bench.run(0.05)
    bench.blocked = True
    step = None
    for tick in range(1, 25):
        bench.command(min(tick / 30, 0.55))
        bench.effort[joint] = effort * min(1.0, tick / 8)
        step = bench.run(1 / 30)
    return bench, step


@pytest.mark.parametrize(("joint", "effort"), [(0, 0.9), (1, 0.9), (2, 1.4), (4, 1.4)])
def test_contact_freezes_at_the_measured_pose_and_is_reported(joint: int, effort: float) -> None:
    bench, step = press(joint, effort)
    assert (step.phase, step.cause, step.contact_joint) == (Phase.HOLD, HoldCause.CONTACT, joint)
    np.testing.assert_array_equal(step.goal[:5], bench.position[:5])
    assert step.goal[5] > 0.1, "the gripper keeps its grip"
    assert bench.core.counters.contacts == 1
    assert bench.command(0.1) is Verdict.REFUSED
    bench.core.acknowledge()
    assert bench.command(0.0) is Verdict.ACCEPTED
    assert bench.run(DT).contact_joint == -1


@pytest.mark.parametrize(
    ("joint", "effort"),
    [(5, 1.47), (0, 0.25), (2, 0.5), (0, -0.9)],
    ids=["gripper grasps", "light load", "light current", "helped along"],
)
def test_ordinary_efforts_are_no_contact(joint: int, effort: float) -> None:
    bench, step = press(joint, effort)
    assert step.phase is Phase.FOLLOW
    assert bench.core.counters.contacts == 0


def test_contact_can_be_switched_off() -> None:
    _, step = press(0, 0.9, QUICK.model_copy(update={"contact": None}))
    assert step.phase is Phase.FOLLOW


def test_gravity_is_expected_effort() -> None:
    """A joint that always carries 0.4 of its load is not in contact at 0.6."""
    bench = Bench(QUICK.model_copy(update={"hold_limit_s": 60.0, "contact": ContactConfig()})).start()
    bench.effort[1] = 0.4
    bench.run(5.0)
    bench.blocked = True
    for tick in range(1, 25):
        bench.command(min(tick / 30, 0.5))
        bench.effort[1] = 0.6
        bench.run(1 / 30)
    assert bench.core.counters.contacts == 0
