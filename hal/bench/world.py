"""The simulated bench in lockstep: a MuJoCo Koch follower, a cube to place, and two cameras.

One ``World`` is one table. Any number of worlds share one compiled scene and one renderer, so that
fifty of them cost fifty ``MjData``. Everything is deterministic in the seed given to ``reset``.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

import mujoco
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from hal.bench import kinematics as kin
from hal.bench.model import (
    CAMERAS,
    CUBE_HALF,
    OBSTACLE_PARKED,
    PARALLEL_JAW,
    ZONE_RADIUS,
    ZONE_XY,
    WorldModel,
    compile_model,
    zone_distance,
)
from hal.bench.rendering import Renderer
from hal.bench.servo_model import (
    AMBIENT_C,
    EFFORT,
    POSITION,
    TEMPERATURE,
    VELOCITY,
    VOLTAGE,
    MotorFaults,
    parameter_table,
    servo_report,
    servo_step,
)
from hal.errors import BenchError
from hal.types import NUM_JOINTS, Image, JointState, Vector

Region = Literal["full", "covered", "gap"]

SERVO_DT_S = 1 / 240
CUBE_X = (0.115, 0.225)  # m
CUBE_Y = (-0.090, 0.030)  # m
CUBE_YAW = math.radians(20.0)
GAP_SHARE = 0.4  # of CUBE_Y, at the end far from the zone

_MOVING_RAD_S = 0.1
_STILL_M_S = 0.02
_HOME_SPREAD = 0.02


class WorldConfig(BaseModel):
    """What a bench world looks like: image size, and how finely the physics is stepped."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = Field(default=96, ge=16, le=1280, multiple_of=2)
    height: int = Field(default=96, ge=16, le=960, multiple_of=2)
    substeps: int = Field(default=1, ge=1, le=8, description="physics steps per servo step of 1/240 s")


@dataclass(frozen=True, slots=True)
class TaskState:
    """Where the task stands.

    ``success``: the cube rests, let go, within the zone. ``lifted``: it has been off the table since
    the reset. ``dropped``: lifted before, but now lying outside the zone with no finger on it.
    ``cube_xy`` m. ``in_gap``: the cube started in the region demonstrations leave out.
    """

    success: bool
    lifted: bool
    dropped: bool
    cube_xy: tuple[float, float]
    in_gap: bool


@functools.cache  # never evicted: freeing one OpenGL context while another is current damages the other
def shared_renderer(model: WorldModel, width: int, height: int) -> Renderer:
    """The process's renderer for one scene and image size."""
    return Renderer(model.mj, width, height)


class World:
    """One table with a follower arm, in lockstep: nothing moves but in ``step``."""

    home: Vector = kin.inverse(kin.ToolPose(0.0, 0.150, 0.130, 1.20, 0.0, 0.90))
    faults: MotorFaults

    def __init__(self, config: WorldConfig | None = None) -> None:
        self.config = config or WorldConfig()
        self._dt = SERVO_DT_S / self.config.substeps
        self.model = compile_model(self._dt, self.config.width, self.config.height)
        self._data = mujoco.MjData(self.model.mj)
        self._qpos, self._qvel = self._data.qpos, self._data.qvel
        self._q, self._qd = self._qpos[:NUM_JOINTS], self._qvel[:NUM_JOINTS]
        self._bias = self._data.qfrc_bias[:NUM_JOINTS]
        self._torque = self._data.qfrc_applied[:NUM_JOINTS]
        self._table = parameter_table()
        self._goal = self.home.copy()
        self._enabled = np.ones(NUM_JOINTS, dtype=np.uint8)
        self._motor = np.zeros((4, NUM_JOINTS))
        self._errors = np.zeros(NUM_JOINTS, dtype=np.uint8)
        self.faults = MotorFaults()
        self._lifted = False
        self._in_gap = False
        self.reset(0)

    # --- the episode -----------------------------------------------------------------------------

    def reset(self, seed: int, region: Region = "full") -> None:
        """Arm near home and energised, cube somewhere in ``region``: a function of the seed alone.

        Motor faults and the obstacle stay as they are; temperatures return to ambient.
        """
        obstacle = self._data.mocap_pos[0].copy()
        mujoco.mj_resetData(self.model.mj, self._data)
        self._data.mocap_pos[0] = obstacle
        start = np.random.default_rng((seed, 0xA0)).uniform(-_HOME_SPREAD, _HOME_SPREAD, NUM_JOINTS)
        self._q[:] = self.home + start
        self._goal[:] = self._q
        self._enabled[:] = 1
        self._motor[:] = 0.0
        self._motor[1] = AMBIENT_C
        self._errors[:] = 0
        self.reset_cube(seed, region)

    def reset_cube(self, seed: int, region: Region = "full") -> None:
        """The scene of ``reset`` without touching the arm: what a person can do while it is energised."""
        u, v, w = np.random.default_rng((seed, 0xB0)).random(3)
        split = CUBE_Y[0] + GAP_SHARE * (CUBE_Y[1] - CUBE_Y[0])
        low, high = {"full": CUBE_Y, "gap": (CUBE_Y[0], split), "covered": (split, CUBE_Y[1])}[region]
        y = low + v * (high - low)
        self.place_cube(CUBE_X[0] + u * (CUBE_X[1] - CUBE_X[0]), y, (2 * w - 1) * CUBE_YAW)
        self._lifted = False
        self._in_gap = bool(y < split)

    def place_cube(self, x: float, y: float, yaw: float) -> None:
        """Put the cube on the table at ``x``, ``y`` m, turned by ``yaw`` rad, at rest."""
        self._qpos[NUM_JOINTS:] = (x, y, CUBE_HALF, math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2))
        self._qvel[NUM_JOINTS:] = 0.0
        mujoco.mj_forward(self.model.mj, self._data)

    def place_arm(self, q: Vector) -> None:
        """Put the arm at ``q`` (6,), rad, at rest and with its goals there."""
        self._q[:] = self._goal[:] = q
        self._qvel[:NUM_JOINTS] = 0.0
        mujoco.mj_forward(self.model.mj, self._data)

    def obstruct(self, xyz: tuple[float, float, float] | None) -> None:
        """Put a 4×12×20 cm block in the arm's way, centred at ``xyz`` m, or take it away (None)."""
        self._data.mocap_pos[0] = OBSTACLE_PARKED if xyz is None else xyz
        mujoco.mj_forward(self.model.mj, self._data)

    # --- the arm ---------------------------------------------------------------------------------

    def set_goals(self, q: Vector) -> None:
        """Goal positions (6,), rad, for the next steps. Raises BenchError when not six finite numbers."""
        if q.shape != (NUM_JOINTS,) or not np.isfinite(q).all():
            raise BenchError(f"goals must be {NUM_JOINTS} finite angles, got {q!r}")
        self._goal[:] = q

    def set_torque(self, on: bool) -> None:
        """Energise or release every motor. Energising makes the present position the goal."""
        if on:
            released = self._enabled == 0
            self._goal[released] = self._q[released]
        self._enabled[:] = on

    def set_motor_goal(self, index: int, position: float) -> None:
        """Goal of one motor, rad."""
        self._goal[index] = position

    def set_motor_torque(self, index: int, on: bool) -> None:
        """Energise or release one motor; its goal stays what it was."""
        self._enabled[index] = on

    def clear_errors(self, index: int | None = None) -> None:
        """What a reboot does: forget the hardware errors of one motor, or of all."""
        chosen = slice(None) if index is None else slice(index, index + 1)
        self._errors[chosen] = 0
        self._motor[2, chosen] = 0.0

    def step(self, dt_s: float = SERVO_DT_S) -> None:
        """Advance by one servo step of 1/240 s. Raises BenchError for any other length."""
        if abs(dt_s - SERVO_DT_S) > 1e-9:
            raise BenchError(f"the bench steps by 1/240 s, not {dt_s} s", "call step once per servo cycle")
        for _ in range(self.config.substeps):
            servo_step(
                self._q,
                self._qd,
                self._bias,
                self._goal,
                self._enabled,
                self._table,
                self.faults.table,
                self._motor,
                self._errors,
                self._dt,
                self._torque,
            )
            mujoco.mj_step(self.model.mj, self._data)
        if self._qpos[NUM_JOINTS + 2] > CUBE_HALF + 0.02:
            self._lifted = True

    @property
    def position(self) -> Vector:
        """True joint positions (6,), rad, a copy: for the demonstrator and tests."""
        return self._q.copy()

    @property
    def goals(self) -> Vector:
        """The motors' present goals (6,), rad, a copy."""
        return self._goal.copy()

    @property
    def hardware_errors(self) -> tuple[int, ...]:
        """The servos' hardware error bytes."""
        return tuple(int(bits) for bits in self._errors)

    @property
    def torque_enabled(self) -> tuple[bool, ...]:
        """Which motors are energised."""
        return tuple(bool(on) for on in self._enabled)

    def joints(self, t_ns: int, seq: int) -> JointState:
        """What the servos would report: quantised as their registers are."""
        report = np.empty((5, NUM_JOINTS))
        servo_report(self._q, self._qd, self._table, self._motor, report)
        return JointState(
            seq=seq,
            t_ns=t_ns,
            position=report[POSITION],
            velocity=report[VELOCITY],
            effort=report[EFFORT],
            temperature=report[TEMPERATURE],
            voltage=report[VOLTAGE],
            hardware_error=self._errors.copy(),
            moving=np.abs(report[VELOCITY]) > _MOVING_RAD_S,
            age_ns=np.zeros(NUM_JOINTS, dtype=np.int64),
        )

    # --- what is to be seen ----------------------------------------------------------------------

    def render(self, camera: str) -> Image:
        """The picture of ``camera`` ("front" or "wrist"), uint8 RGB (H, W, 3)."""
        index = self.model.camera_ids.get(camera)
        if index is None:
            raise BenchError(f"the bench has no camera {camera!r}", f"use one of {', '.join(CAMERAS)}")
        renderer = shared_renderer(self.model, self.config.width, self.config.height)
        return renderer.draw(self._data, index)

    def cube_pose(self) -> tuple[float, float, float, float]:
        """The cube's x, y, z (m) and the direction (rad) of one of its upright faces.

        Whichever way it lies: the face whose normal is nearest the horizon counts.
        """
        x, y, z = (float(v) for v in self._qpos[NUM_JOINTS : NUM_JOINTS + 3])
        turn = self._data.xmat[self.model.cube_body].reshape(3, 3)
        flattest = int(np.argmin(np.abs(turn[2])))
        return x, y, z, math.atan2(turn[1, flattest], turn[0, flattest])

    def touching(self) -> tuple[bool, bool]:
        """Whether the fixed and the moving finger pad touch the cube."""
        cube = self.model.cube_geom
        partners = {b if a == cube else a for a, b in self._data.contact.geom.tolist() if cube in (a, b)}
        fixed, moving = self.model.pad_geoms
        return fixed in partners, moving in partners

    @property
    def fingers(self) -> Vector:
        """Where the middles of the fixed and the moving finger pad are, m, (2, 3)."""
        return np.array([self._data.geom_xpos[geom] for geom in self.model.pad_geoms])

    @property
    def obstructed(self) -> bool:
        """Whether the block of ``obstruct`` touches the arm or the cube."""
        obstacle = self.model.obstacle_geom
        return any(obstacle in pair for pair in self._data.contact.geom.tolist())

    def task(self) -> TaskState:
        """Where the task stands now."""
        x, y, z = (float(v) for v in self._qpos[NUM_JOINTS : NUM_JOINTS + 3])
        speed = float(np.linalg.norm(self._qvel[NUM_JOINTS : NUM_JOINTS + 3]))
        free = not any(self.touching())
        resting = free and speed < _STILL_M_S and z < CUBE_HALF + 0.006
        inside = zone_distance(x, y) <= ZONE_RADIUS
        return TaskState(
            success=resting and inside,
            lifted=self._lifted,
            dropped=self._lifted and free and not inside and z < CUBE_HALF + 0.02,
            cube_xy=(x, y),
            in_gap=self._in_gap,
        )


__all__ = ["PARALLEL_JAW", "ZONE_XY", "Region", "TaskState", "World", "WorldConfig"]
