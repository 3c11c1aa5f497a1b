"""Ordinary motion of an arm that nothing stands in the way of, in simulated time.

Three kinds take turns: demonstrations that grasp and place the cube, the same as a policy would do it
(chunks that do not quite meet, a little noise), and free motion up to the guard's velocity limit.
Each stretch gets motors of its own: more or less friction, warmer or colder.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from hal.bench import kinematics as kin
from hal.bench.demonstrator import TICK_S, Demonstrator
from hal.bench.world import World, WorldConfig
from hal.dynamixel.arm import KOCH_FOLLOWER
from hal.types import JOINTS, NUM_JOINTS, JointState, Vector
from runtime.control import ControlConfig
from runtime.guard import GuardLimits
from runtime.nouns import Source, Waypoint
from runtime.servo import ServoConfig, ServoCore, ServoStep
from runtime.streams import SERVO_HZ, SERVO_NS, STEPS_PER_TICK

FAST_RAD_S = 3.3  # the guard stops at 3.5
EPISODE_TICKS = 240
_MIN_JERK_PEAK = 1.875
_CHUNK = 16
# Friction (N·m) added at most, about five times what a new motor of the bench has; heating °C/s.
WORN_NM = {"xl430-w250": 0.10, "xl330-m288": 0.04}
WARM_C_S = 0.1
MODELS = tuple(motor.model_name for motor in KOCH_FOLLOWER.motors)


class Bench:
    """A world and a servo core in lockstep, commanded as the control loop does: a waypoint a tick."""

    def __init__(self, servo: ServoConfig, limits: GuardLimits | None = None) -> None:
        self.world = World(WorldConfig(width=16, height=16))
        self.servo = servo
        self._limits = limits or GuardLimits()
        self._control = ControlConfig()
        self._cycle = self._seq = 0
        self.now_ns = 1
        self.joints: JointState = self.world.joints(self.now_ns, 0)
        self.core = ServoCore(self._limits, servo)

    def begin(self, pose: Vector | None = None, seed: int = 0) -> None:
        """A new scene, the arm energised and at rest; at ``pose`` (6,) rad if one is given."""
        self.world.reset(seed)
        if pose is not None:
            self.world.place_arm(pose)
        self.joints = self.world.joints(self.now_ns, self._cycle)
        self.core = ServoCore(self._limits, self.servo)
        self.core.start(self.joints)
        self._seq = 0

    def aim(self, target: Vector) -> None:
        """This tick's waypoint, rad (6,): to be reached one tick from now, void 200 ms later."""
        self._seq += 1
        due_ns = self.now_ns + self._control.period_ns
        life_ns = round(self._control.expire_ms * 1e6)
        self.core.command(Waypoint(target, due_ns, due_ns + life_ns, Source.TELEOP, self._seq))

    def step(self) -> ServoStep:
        """One servo cycle: guard, write, physics, read."""
        step = self.core.step(self.now_ns, self.joints)
        self.world.set_goals(step.goal)
        self.world.step(1.0 / SERVO_HZ)
        self.now_ns += SERVO_NS
        self._cycle += 1
        self.joints = self.world.joints(self.now_ns, self._cycle)
        return step

    def tick(self, target: Vector) -> ServoStep:
        """One control tick towards ``target``; its last servo cycle."""
        self.aim(target)
        for _ in range(STEPS_PER_TICK):
            step = self.step()
        return step


class Motion(Protocol):
    """Where the arm is sent, tick by tick; ``done`` when the stretch is over."""

    @property
    def done(self) -> bool: ...
    def step(self) -> Vector: ...


class Demonstrated:
    """Pick the cube, place it."""

    def __init__(self, world: World, seed: int) -> None:
        self._expert = Demonstrator(world, seed)
        self._expert.begin()

    @property
    def done(self) -> bool:
        return self._expert.done

    def step(self) -> Vector:
        return self._expert.step()


class PolicyLike(Demonstrated):
    """The same from chunks of 16 actions: each chunk is a little off in its own way, each action jitters."""

    def __init__(self, world: World, seed: int) -> None:
        super().__init__(world, seed)
        self._rng = np.random.default_rng((seed, 0xB0B))
        self._offset = np.zeros(NUM_JOINTS)
        self._aim = np.zeros(NUM_JOINTS)
        self._ticks = 0

    def step(self) -> Vector:
        if self._ticks % _CHUNK == 0:
            self._aim = self._rng.normal(0.0, 0.012, NUM_JOINTS)
        self._ticks += 1
        self._offset += (self._aim - self._offset) / 4  # chunks are blended over four ticks
        return kin.clip_to_range(super().step() + self._offset + self._rng.normal(0.0, 0.003, NUM_JOINTS))


class Free:
    """From one random pose above the table to the next, in a straight line of the joints, up to top speed."""

    def __init__(self, world: World, seed: int) -> None:
        self._rng = np.random.default_rng((seed, 0xF4EE))
        self._at = kin.clip_to_range(world.goals)
        self._plan: deque[Vector] = deque()
        self._moves = 8

    @property
    def done(self) -> bool:
        return not self._plan and self._moves == 0

    def step(self) -> Vector:
        if not self._plan and self._moves:
            self._moves -= 1
            self._plan.extend(self._next())
        if self._plan:
            self._at = self._plan.popleft()
        return self._at.copy()

    def _next(self) -> list[Vector]:
        """A min-jerk path that keeps the fingers off the table, and sometimes a rest."""
        while True:
            path = min_jerk(self._at, free_pose(self._rng), float(self._rng.uniform(0.5, FAST_RAD_S)))
            if min(kin.forward(q).height for q in path) > 0.04:
                rest = int(self._rng.integers(0, 30)) if self._rng.random() < 0.3 else 0
                return path + [path[-1]] * rest


def free_pose(rng: np.random.Generator) -> Vector:
    """A pose in front of the arm with the fingers well above the table, rad (6,)."""
    radius, height = float(rng.uniform(0.12, 0.24)), float(rng.uniform(0.07, 0.20))
    pitch = kin.steepest_pitch(radius, height, float(rng.uniform(0.3, 1.4)))
    azimuth, roll = float(rng.uniform(-1.2, 1.2)), float(rng.uniform(-1.5, 1.5))
    return kin.inverse(kin.ToolPose(azimuth, radius, height, pitch, roll, float(rng.uniform(0.1, 1.2))))


def min_jerk(start: Vector, target: Vector, peak_rad_s: float) -> list[Vector]:
    """Ticks of a straight line in joint space whose fastest joint peaks at ``peak_rad_s``."""
    way = float(np.abs(target - start).max())
    count = max(2, math.ceil(_MIN_JERK_PEAK * way / peak_rad_s / TICK_S))
    s = np.arange(1, count + 1) / count
    return [start + share * (target - start) for share in s**3 * (10 - 15 * s + 6 * s * s)]


def wear(world: World, rng: np.random.Generator) -> None:
    """Motors of this stretch: a random part of the most that wear and warmth add."""
    most = np.array([WORN_NM[model] for model in MODELS])
    world.faults.friction_nm[:] = rng.uniform(0.0, 1.0, NUM_JOINTS) * most
    world.faults.heat_c_s[:] = rng.uniform(0.0, WARM_C_S, NUM_JOINTS)


@dataclass(slots=True)
class Quiet:
    """Ordinary motion: how much of it, what was grasped, and each stop that should not have been."""

    hours: float = 0.0
    stretches: int = 0
    grasps: int = 0
    stops: list[dict[str, object]] = field(default_factory=list)


KINDS: tuple[type[Demonstrated] | type[Free], ...] = (Demonstrated, PolicyLike, Free)


def run_stretch(bench: Bench, seed: int, quiet: Quiet) -> None:
    """One stretch of motion; a contact stop ends it and is noted."""
    rng = np.random.default_rng((seed, 0x3EA7))
    bench.begin(seed=seed)
    wear(bench.world, rng)
    kind = KINDS[seed % len(KINDS)]
    motion = kind(bench.world, seed)
    ticks, lifted = 0, False
    while not motion.done and ticks < EPISODE_TICKS:
        step = bench.tick(motion.step())
        ticks += 1
        lifted = lifted or bench.world.task().lifted
        if step.contact_joint >= 0:
            stop = {"seed": seed, "motion": kind.__name__, "joint": JOINTS[step.contact_joint], "tick": ticks}
            quiet.stops.append({**stop, "residual": round(step.residual, 3)})
            break
    quiet.hours += ticks * TICK_S / 3600.0
    quiet.stretches += 1
    quiet.grasps += lifted
