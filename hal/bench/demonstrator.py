"""The scripted expert: moves the leader so that the follower picks the cube and places it in the zone.

It plans one stretch at a time from what the world looks like then, so it can begin from any state of
arm and cube and tries again when a grasp fails.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import numpy as np

from hal.bench import kinematics as kin
from hal.bench.model import CUBE_HALF, ZONE_XY
from hal.bench.world import World
from hal.types import Vector

TICK_S = 1 / 30
_THERE_RAD = 0.05
PEAK_SPEED = 2.3  # rad/s of any leader joint
_MIN_JERK_PEAK = 1.875  # peak over mean speed of a minimum-jerk motion
OPEN_JAW = 0.85
_FINGER_SHIFT = 0.009  # the cube enters this far (m) towards the moving jaw, for clearance on both sides
_GIVE_UP_TICKS = 900


class Demonstrator:
    """Moves a leader arm tick by tick (30 Hz); the follower is expected to follow it 1:1.

    Motion is minimum-jerk, below ``PEAK_SPEED``; speed, heights, and the place in the zone vary a
    little with ``seed``.
    """

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        rng = np.random.default_rng((seed, 0xDE))
        self._pace = float(rng.uniform(0.95, 1.10))
        self._hover = float(rng.uniform(0.052, 0.060))
        self._carry = float(rng.uniform(0.050, 0.060))
        self._grasp = float(rng.uniform(0.019, 0.023))
        self._squeeze = float(rng.uniform(0.31, 0.35))
        self._twist = float(rng.normal(0.0, 0.03))
        self._place = rng.uniform(-0.008, 0.008, 2)
        self._plan: deque[Vector] = deque()
        self._next: Callable[[], None] | None = None
        self._leader = world.goals
        self._ticks = 0

    @property
    def done(self) -> bool:
        """The cube is placed and the arm has withdrawn, or the expert has given up."""
        return not self._plan and self._next is None

    def begin(self) -> None:
        """Plan from the present state: the leader starts where the follower's goals are.

        A goal far from where the follower really is (a stalled arm) is first drawn back to it.
        """
        q = self._world.position
        self._leader = kin.clip_to_range(np.clip(self._world.goals, q - 0.15, q + 0.15))
        self._ticks = 0
        self._plan.clear()
        self._next = self._clear

    def step(self) -> Vector:
        """Leader joint positions (6,), rad, for the next control tick; holds still once done."""
        while not self._plan and self._next is not None:
            stage, self._next = self._next, None
            stage()
        if self._plan:
            self._leader = self._plan.popleft()
        self._ticks += 1
        if self._ticks >= _GIVE_UP_TICKS:
            self._plan.clear()
            self._next = None
        return self._leader.copy()

    # --- stages: each plans one stretch and names the next -----------------------------------------

    def _clear(self) -> None:
        """Carry on with a cube already held aloft; otherwise open up and rise out of whatever it is."""
        if all(self._world.touching()) and self._world.cube_pose()[2] > CUBE_HALF + 0.01:
            self._next = self._lift
            return
        if self._leader[5] < OPEN_JAW - 0.15 and any(self._world.touching()):
            self._line(kin.forward(self._with_jaw(OPEN_JAW)), 8)
        here = kin.forward(self._tail())
        if here.height < self._hover - 0.01:
            radius = min(max(here.radius, 0.10), 0.24)
            up = self._pose(here.azimuth, radius, self._hover, here.roll, OPEN_JAW)
            self._joints(kin.inverse(up), 10)
        self._next = self._reach

    def _reach(self) -> None:
        over = kin.inverse(self._over_cube(self._hover))
        if np.abs(over - self._tail()).max() > _THERE_RAD:  # else it would stand still for as long
            self._joints(over, 17)
        self._next = self._descend

    def _descend(self) -> None:
        self._line(self._over_cube(self._grasp), 12)
        self._next = self._close

    def _close(self) -> None:
        self._line(kin.forward(self._with_jaw(self._squeeze)), 8)
        self._next = self._lift

    def _lift(self) -> None:
        """Rise with the jaw squeezing, whatever it did before."""
        here = kin.forward(self._with_jaw(self._squeeze))
        self._line(self._pose(here.azimuth, here.radius, self._carry, here.roll, here.gripper), 10)
        self._next = self._carry_over

    def _carry_over(self) -> None:
        if self._world.cube_pose()[2] < CUBE_HALF + 0.01:
            self._next = self._clear
            return
        self._line(self._over_zone(self._carry), 20)
        self._next = self._lower

    def _lower(self) -> None:
        self._line(self._over_zone(self._grasp + 0.003), 9)
        self._next = self._release

    def _release(self) -> None:
        self._line(kin.forward(self._with_jaw(OPEN_JAW)), 8)
        self._next = self._withdraw

    def _withdraw(self) -> None:
        here = kin.forward(self._leader)
        self._line(self._pose(here.azimuth, here.radius, self._hover, here.roll, here.gripper), 8)
        self._next = self._judge

    def _judge(self) -> None:
        self._next = None if self._world.task().success else self._clear

    # --- poses and paths ---------------------------------------------------------------------------

    def _over_cube(self, height: float) -> kin.ToolPose:
        """Fingers astride the cube, the jaw's closing direction square to its nearest faces."""
        x, y, _, yaw = self._world.cube_pose()
        return self._astride(x, y, yaw + self._twist, height, OPEN_JAW, _FINGER_SHIFT)

    def _over_zone(self, height: float) -> kin.ToolPose:
        x, y = ZONE_XY[0] + self._place[0], ZONE_XY[1] + self._place[1]
        here = kin.forward(self._leader)
        radius, azimuth = math.hypot(x, y), math.atan2(y, x)
        return self._pose(azimuth, radius, height, 0.3 * here.roll, here.gripper)

    def _astride(
        self, x: float, y: float, yaw: float, height: float, jaw: float, shift: float
    ) -> kin.ToolPose:
        azimuth = math.atan2(y, x)
        roll = 0.0
        for _ in range(3):  # the shift depends on the azimuth it changes: converges at once
            quarter = math.pi / 2
            roll = (yaw - azimuth + quarter / 2) % quarter - quarter / 2
            # Rolling turns the fingers the other way when the hand points down.
            side = azimuth + roll + quarter
            px, py = x - shift * math.cos(side), y - shift * math.sin(side)
            azimuth = math.atan2(py, px)
        return self._pose(azimuth, math.hypot(px, py), height, -roll, jaw)

    @staticmethod
    def _pose(azimuth: float, radius: float, height: float, roll: float, jaw: float) -> kin.ToolPose:
        return kin.ToolPose(azimuth, radius, height, kin.steepest_pitch(radius, height), roll, jaw)

    def _with_jaw(self, jaw: float) -> Vector:
        q = self._leader.copy()
        q[5] = jaw
        return q

    def _tail(self) -> Vector:
        return self._plan[-1] if self._plan else self._leader

    def _line(self, target: kin.ToolPose, ticks: int) -> None:
        """A straight line of the tool (in cylindrical coordinates) from the plan's end to ``target``."""
        start = self._tail()
        a, b = kin.forward(start).as_array(), target.as_array()
        for s in self._profile(start, kin.inverse(target), ticks):
            self._plan.append(kin.inverse(kin.ToolPose(*(a + s * (b - a)))))

    def _joints(self, target: Vector, ticks: int) -> None:
        """A straight line in joint space from the plan's end to ``target``."""
        start = self._tail()
        for s in self._profile(start, target, ticks):
            self._plan.append(start + s * (target - start))

    def _profile(self, start: Vector, target: Vector, ticks: int) -> Vector:
        """Minimum-jerk progress 0…1 over at least ``ticks``, longer where a joint would be too fast."""
        furthest = float(np.abs(target - start).max())
        needed = _MIN_JERK_PEAK * furthest / PEAK_SPEED / TICK_S
        count = max(2, math.ceil(max(ticks * self._pace, needed)))
        s = np.arange(1, count + 1) / count
        return s**3 * (10 - 15 * s + 6 * s * s)
