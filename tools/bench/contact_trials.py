"""A block in the arm's way: one joint moves at an ordinary speed until the block stops it.

A trial is run twice. Without the contact stop it shows whether the block really blocks the joint (a finger
may also slide past it); with it, how soon the arm is stopped. Both are counted from the first step in
which the physics sees block and arm touch, and again from the step at which the joint stood still.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hal.bench import kinematics as kin
from hal.bench.demonstrator import TICK_S
from hal.types import NUM_JOINTS, Vector
from runtime.servo import ServoConfig
from runtime.streams import SERVO_HZ, STEPS_PER_TICK
from tools.bench.contact_motion import Bench, free_pose, wear

SPEEDS = (0.8, 2.3)  # rad/s; the demonstrator's joints peak at 2.3
WATCHED = NUM_JOINTS - 1  # the gripper is meant to push
_ROLL, _OPEN_JAW = 4, 1.2
_WAYS = (0.75, 0.75, 0.75, 0.75, 1.5)  # rad each joint is asked to go
_RUN_UP = 0.15  # rad before the block at least
_BLOCKED_STEPS = round(
    0.15 * SERVO_HZ
)  # steps after the touch in which it shows whether the joint is blocked
_STILL_SHARE = 0.15  # of the commanded speed
_TRIES = 300
_BLOCKED_SHARE = 0.5
_PATIENCE_STEPS = round(0.5 * SERVO_HZ)
_CUBE_AWAY = (-0.2, 0.2, 0.0)
_LIMIT_STEPS = round(2 * SERVO_HZ)
_HALF = np.array((0.02, 0.06, 0.10))


@dataclass(frozen=True, slots=True)
class Obstacle:
    """One trial: joint ``joint`` goes from ``start`` (6,) rad at ``speed`` rad/s (its sign is the
    direction) towards a block centred at ``block`` m; ``seed`` also decides how worn the motors are."""

    joint: int
    start: Vector
    speed: float
    block: tuple[float, float, float]
    seed: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of it. ``touch``, ``still`` (−1: never) and ``stop``, which froze the goals, are steps.

    ``covered`` is the share of the commanded way that the joint went from the touch to the end.
    """

    touch: int
    still: int
    stop: int | None
    joint: int
    residual: float
    covered: float

    @property
    def stop_ms(self) -> float | None:
        """From touch to freeze; None without either."""
        return (
            None
            if self.stop is None or self.touch < 0
            else round((self.stop - self.touch) * 1000.0 / SERVO_HZ, 1)
        )

    @property
    def still_ms(self) -> float | None:
        """From the joint's standstill to the freeze; None when the freeze came first."""
        if self.stop is None or self.still < 0:
            return None
        return round((self.stop - self.still) * 1000.0 / SERVO_HZ, 1)


def propose(free: Bench, seed: int) -> Obstacle | None:
    """A trial of this seed whose block blocks the joint, or None when chance gave none.

    ``free`` must have no contact stop: the candidate is tried on it.
    """
    rng = np.random.default_rng((seed, 0x0B57))
    joint = seed % WATCHED
    speed = float(rng.uniform(*SPEEDS)) * (1.0 if rng.random() < 0.5 else -1.0)
    for _ in range(_TRIES):
        start = free_pose(rng)
        if joint == _ROLL:
            start[WATCHED] = _OPEN_JAW  # something that sticks out and turns
        end = start.copy()
        end[joint] += np.sign(speed) * _WAYS[joint]
        low, high = kin.JOINT_RANGE[joint]
        if not low < end[joint] < high or not _above_table(start, end, joint):
            continue
        block = _block(rng, free, start, end, joint)
        if block is not None:
            trial = Obstacle(joint, start, speed, block, seed)
            if _blocks(free, trial):
                return trial
    return None


def _above_table(start: Vector, end: Vector, joint: int) -> bool:
    middle = start + (end - start) * 0.5
    return all(kin.forward(q).height > 0.03 for q in (start, middle, end))


def _block(
    rng: np.random.Generator, free: Bench, start: Vector, end: Vector, joint: int
) -> tuple[float, float, float] | None:
    """Where the block is clear of the arm for the run-up and in its way after it: before a finger."""
    world, span = free.world, abs(float(end[joint] - start[joint]))
    world.place_cube(*_CUBE_AWAY)
    world.obstruct(None)
    finger = int(rng.integers(2))
    seen = []
    for share in (_RUN_UP / span, _RUN_UP / span + float(rng.uniform(0.25, 0.45))):
        aim = start + (end - start) * share
        world.place_arm(aim)
        seen.append(world.fingers[finger])
    way = seen[1] - seen[0]
    way /= np.linalg.norm(way)
    # From the finger to the block's middle: its half width that way, and somewhat to the side.
    depth = float((_HALF / np.maximum(np.abs(way), 1e-6)).min()) * float(rng.uniform(0.7, 1.2))
    aside = rng.uniform(-0.7, 0.7, 3) * _HALF
    centre = seen[1] + way * depth + aside - way * float(way @ aside)
    block = (float(centre[0]), float(centre[1]), float(centre[2]))
    world.obstruct(block)
    in_the_way = world.obstructed
    for share in np.linspace(0.0, _RUN_UP / span, 4):
        world.place_arm(start + (end - start) * share)
        in_the_way = in_the_way and not world.obstructed
    return block if in_the_way else None


def run(bench: Bench, trial: Obstacle) -> Outcome:
    """Run it until the contact stop, or for 150 ms after the touch where there is none."""
    bench.begin(trial.start, trial.seed)
    bench.world.place_cube(*_CUBE_AWAY)
    bench.world.obstruct(trial.block)
    wear(bench.world, np.random.default_rng((trial.seed, 0x3EA7)))
    joint, target = trial.joint, trial.start.copy()
    touch = still = -1
    at_touch = 0.0
    last = _BLOCKED_STEPS if bench.servo.contact is None else _PATIENCE_STEPS
    for index in range(_LIMIT_STEPS):
        if index % STEPS_PER_TICK == 0:
            left = _WAYS[joint] - abs(target[joint] - trial.start[joint])
            target[joint] += np.sign(trial.speed) * min(left, abs(trial.speed) * TICK_S)
            bench.aim(target)
        step = bench.step()
        position = float(bench.joints.position[joint])
        if touch < 0 and bench.world.obstructed:
            touch, at_touch = index, position
        if touch >= 0 and still < 0 and bench.joints.velocity[joint] / trial.speed < _STILL_SHARE:
            still = index
        stopped = step.contact_joint >= 0
        if stopped or (touch >= 0 and index - touch >= last):
            asked = trial.speed * max(index - touch, 1) / SERVO_HZ
            stop = index if stopped else None
            return Outcome(
                touch, still, stop, step.contact_joint, step.residual, (position - at_touch) / asked
            )
    return Outcome(touch, still, None, -1, 0.0, 1.0)


def _blocks(free: Bench, trial: Obstacle) -> bool:
    """Whether the joint is blocked: from the touch on it covers less than half of what it is told to."""
    outcome = run(free, trial)
    commanded = _WAYS[trial.joint] / abs(trial.speed) * SERVO_HZ  # steps
    in_time = 0 <= outcome.touch < commanded - _BLOCKED_STEPS
    return in_time and outcome.still >= 0 and outcome.covered < _BLOCKED_SHARE


def without_stop(servo: ServoConfig) -> ServoConfig:
    """The same, but nothing stops on contact."""
    return servo.model_copy(update={"contact": None})
