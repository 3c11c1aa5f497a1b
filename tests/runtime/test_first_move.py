"""Whoever moves the arm first, it starts where the arm is and ramps up: teleoperation, replay, policy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from hal.types import Vector
from runtime.control import ControlConfig, Controller
from runtime.guard import GuardLimits
from runtime.monitors import MonitorBank, MonitorConfig
from runtime.nouns import ActionChunk, Observation, Source, Waypoint
from runtime.servo import ServoConfig
from runtime.streams import STEPS_PER_TICK
from tools.bench.contact_motion import Bench
from tools.commands.replay import schedule

DT = 1.0 / 240.0
START = np.array([0.2, 0.1, -0.4, 1.0, 0.3, 0.6])
FAR = np.array([-0.9, -0.3, 0.2, 0.4, -0.9, 1.1])  # where leader, episode or policy is when it begins
CONFIG = ServoConfig()

Path = Callable[[Controller, Observation], Waypoint | None]


def teleop() -> Path:
    return lambda controller, seen: controller.tick(seen, Source.TELEOP, target=FAR).waypoint


def policy() -> Path:
    def tick(controller: Controller, seen: Observation) -> Waypoint | None:
        if controller.wants_chunk(seen.tick):
            actions = np.tile(FAR, (32, 1)).astype(np.float32)
            controller.offer(ActionChunk(actions, seen.tick, seen.t_ns, "a" * 12, 0, 1.0), seen.tick)
        return controller.tick(seen, Source.POLICY).waypoint

    return tick


def replay() -> Path:
    actions = np.tile(FAR, (30, 1))
    _, where = schedule(START, np.arange(30) / 30.0, actions)
    assert np.abs(where[0] - START).max() < 0.02, "an even way from where the arm is"

    def tick(controller: Controller, seen: Observation) -> Waypoint | None:
        target = where[min(seen.tick, len(where) - 1)]
        return controller.tick(seen, Source.TELEOP, target=target).waypoint

    return tick


def drive(path: Path, seconds: float) -> Vector:
    """The goals let through from enabling on, rad (n, 6)."""
    bench = Bench(CONFIG)
    bench.begin(START)
    bench.world.place_cube(-0.2, 0.2, 0.0)
    controller = Controller(ControlConfig(), MonitorBank(MonitorConfig(), {}, 240))
    controller.begin()
    goals = []
    for tick in range(round(seconds * 30)):
        seen = Observation(tick, bench.now_ns, bench.joints, bench.core.goal, {})
        waypoint = path(controller, seen)
        if waypoint is not None:
            bench.core.command(waypoint)
        for _ in range(STEPS_PER_TICK):
            goals.append(bench.step().goal)
    return np.array(goals)


@pytest.mark.parametrize("path", [teleop, replay, policy])
def test_it_starts_where_the_arm_is_and_ramps_up(path: Callable[[], Path]) -> None:
    goals = drive(path(), 3.5)
    _, _, speed, acceleration, _ = GuardLimits().table()
    assert np.abs(goals[0] - START).max() < 0.002
    steps = np.abs(np.diff(goals, axis=0)) / DT
    times = np.arange(2, len(goals) + 1)[:, None] * DT
    allowed = speed * np.minimum(1.0, CONFIG.ramp_floor + (1.0 - CONFIG.ramp_floor) * times / CONFIG.ramp_s)
    assert (steps <= allowed + 1e-6).all()
    assert np.abs(np.diff(goals, 2, axis=0)).max() <= acceleration.max() * DT * DT + 1e-9
    assert np.abs(goals[-1] - FAR).max() < 0.02, "and it gets there"
