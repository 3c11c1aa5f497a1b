"""A contact stops a lockstep arm as it stops a real one; whoever takes over resumes it."""

from __future__ import annotations

import numpy as np

from hal.bench.world import World
from hal.types import JOINTS, Vector
from runtime.guard import GuardLimits
from runtime.lockstep import LockstepArm
from runtime.nouns import Source, Waypoint
from runtime.servo import ServoConfig
from runtime.streams import SERVO_NS, STEPS_PER_TICK

TICK_NS = STEPS_PER_TICK * SERVO_NS

LIFT = JOINTS.index("shoulder_lift")


def move(arm: LockstepArm, target: Vector, ticks: int, seq: int) -> None:
    """Ask for ``target`` on each of ``ticks`` ticks."""
    for tick in range(ticks):
        now = arm.observe(render=False).t_ns
        arm.advance(Waypoint(target, now + 6 * TICK_NS, now + 12 * TICK_NS, Source.TELEOP, seq + tick))


def test_a_stopped_arm_moves_again_once_somebody_has_taken_over() -> None:
    arm = LockstepArm(World(), GuardLimits(), ServoConfig())
    arm.reset(0, "full")
    home = arm.goal
    down = home.copy()
    down[LIFT] += 2.0  # through the table
    move(arm, down, 90, 0)
    stopped = arm.goal
    assert stopped[LIFT] < down[LIFT] - 0.3, "the table is in the way"
    move(arm, home, 30, 200)
    np.testing.assert_allclose(arm.goal, stopped, err_msg="a contact stop stays until somebody resumes")
    arm.resume()
    move(arm, home, 60, 300)
    np.testing.assert_allclose(arm.goal, home, atol=0.02)
    arm.resume()  # nothing stands in the way: it changes nothing
    move(arm, home, 2, 400)
    np.testing.assert_allclose(arm.goal, home, atol=0.02)
