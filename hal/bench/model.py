"""The bench's MJCF: a Koch v1.1 follower of plain geoms, table, cube, zone, obstacle, two cameras."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from hal.bench import kinematics as kin
from hal.bench.servo_model import FOLLOWER_MOTORS
from hal.errors import BenchError
from hal.types import JOINTS

CUBE_HALF = 0.014
ZONE_XY = (0.165, 0.115)
ZONE_RADIUS = 0.04
CAMERAS = ("front", "wrist")
OBSTACLE_PARKED = (0.0, 0.0, -1.0)

# Angle of the moving jaw at which its pad is parallel to the fixed one, a cube's width away.
PARALLEL_JAW = 0.50
_JAW_FIXED_Y = -CUBE_HALF
_JAW_HINGE = (0.013, 0.024)


def _joint(name: str, axis: str) -> str:
    index = JOINTS.index(name)
    low, high = kin.JOINT_RANGE[index]
    armature = FOLLOWER_MOTORS[index][0].armature
    return f'<joint name="{name}" axis="{axis}" range="{low} {high}" armature="{armature}" damping="0.003"/>'


def _hand() -> str:
    hinge_x, hinge_y = _JAW_HINGE
    pad_y = CUBE_HALF - hinge_y  # inner face of the moving pad in the jaw's frame when parallel
    return f"""
<body name="hand" pos="{kin.ROLL_OFFSET} 0 0">
  {_joint("wrist_roll", "1 0 0")}
  <geom type="box" size="0.014 0.020 0.010" pos="-0.002 0.002 0" mass="0.022" class="link" material="white"/>
  <geom type="box" size="0.010 0.006 0.009" pos="0.016 -0.022 0" mass="0.004" class="link" material="white"/>
  <geom name="fixed_pad" type="box" size="0.0265 0.003 0.008" pos="0.0445 {_JAW_FIXED_Y - 0.003} 0"
        mass="0.006" class="pad"/>
  <camera name="wrist" pos="-0.030 0.004 0.060" fovy="72" xyaxes="0 -1 0 0.62 0 0.785"/>
  <body name="jaw" pos="{hinge_x} {hinge_y} 0" euler="0 0 {-PARALLEL_JAW}">
    {_joint("gripper", "0 0 1")}
    <geom type="cylinder" size="0.008 0.009" mass="0.004" class="link" material="blue"/>
    <geom name="moving_pad" type="box" size="0.0275 0.003 0.008" pos="{0.0305} {pad_y + 0.003} 0"
          mass="0.008" class="pad" material="blue"/>
  </body>
</body>"""


def _arm() -> str:
    return f"""
<body name="base">
  <geom type="box" size="0.03 0.024 0.018" pos="-0.012 0 0.018" class="look" material="black"/>
</body>
<body name="shoulder" pos="0 0 {kin.PAN_HEIGHT}">
  {_joint("shoulder_pan", "0 0 1")}
  <geom type="box" size="0.018 0.022 0.012" pos="0 0 0.004" mass="0.075" class="look" material="black"/>
  <body name="upper" pos="0 0 {kin.LIFT_OFFSET}">
    {_joint("shoulder_lift", "0 1 0")}
    <geom type="capsule" size="0.011" fromto="0 0 0 {kin.ELBOW[0]} 0 {kin.ELBOW[1]}" mass="0.050" class="look"
          material="white"/>
    <body name="fore" pos="{kin.ELBOW[0]} 0 {kin.ELBOW[1]}">
      {_joint("elbow_flex", "0 1 0")}
      <geom type="cylinder" size="0.014 0.014" zaxis="0 1 0" mass="0.024" class="look" material="black"/>
      <geom type="capsule" size="0.010" fromto="0.012 0 0 {kin.WRIST[0]} 0 {kin.WRIST[1]}" mass="0.040"
            class="link" material="white"/>
      <body name="wrist" pos="{kin.WRIST[0]} 0 {kin.WRIST[1]}">
        {_joint("wrist_flex", "0 1 0")}
        <geom type="box" size="0.016 0.013 0.011" pos="0.016 0 0" mass="0.020" class="link" material="black"/>
        {_hand()}
      </body>
    </body>
  </body>
</body>"""


def mjcf(timestep_s: float, width: int, height: int) -> str:
    """The whole scene as MJCF text."""
    zone_x, zone_y = ZONE_XY
    return f"""
<mujoco model="ratchet_bench">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{timestep_s!r}" cone="elliptic" impratio="10" integrator="Euler" iterations="30">
    <flag eulerdamp="disable"/>
  </option>
  <visual>
    <quality offsamples="0" shadowsize="0" numslices="16" numstacks="8" numquads="1"/>
    <headlight ambient="0.45 0.45 0.45" diffuse="0.45 0.45 0.45" specular="0 0 0"/>
    <map znear="0.02" zfar="20"/>
    <global offwidth="{width}" offheight="{height}"/>
  </visual>
  <statistic extent="0.5" center="0.15 0 0.1"/>
  <default>
    <default class="look"><geom contype="0" conaffinity="0"/></default>
    <default class="link"><geom contype="2" conaffinity="1" friction="0.6"/></default>
    <default class="pad">
      <geom contype="2" conaffinity="1" friction="1.3 0.01 0.0001" priority="1" solref="0.01 1"
            material="orange"/>
    </default>
  </default>
  <asset>
    <material name="white" rgba="0.82 0.82 0.80 1"/>
    <material name="black" rgba="0.13 0.13 0.15 1"/>
    <material name="orange" rgba="0.95 0.62 0.10 1"/>
    <material name="blue" rgba="0.15 0.35 0.90 1"/>
    <material name="table" rgba="0.55 0.50 0.45 1"/>
    <material name="red" rgba="0.85 0.10 0.12 1"/>
    <material name="green" rgba="0.15 0.62 0.30 1"/>
  </asset>
  <worldbody>
    <light pos="0.3 -0.3 1.0" dir="-0.2 0.3 -1" directional="true" diffuse="0.4 0.4 0.4" castshadow="false"/>
    <geom name="table" type="plane" size="1 1 0.1" material="table" friction="0.6"/>
    <geom name="zone" type="cylinder" size="{ZONE_RADIUS} 0.0004" pos="{zone_x} {zone_y} 0" class="look"
          material="green"/>
    <camera name="front" pos="0.42 0.025 0.30" fovy="44" xyaxes="0 1 0 -0.63 0 0.777"/>
    {_arm()}
    <body name="cube" pos="0.17 0 {CUBE_HALF}">
      <freejoint name="cube"/>
      <geom name="cube" type="box" size="{CUBE_HALF} {CUBE_HALF} {CUBE_HALF}" mass="0.022" material="red"
            friction="0.6 0.005 0.0001"/>
    </body>
    <body name="obstacle" mocap="true" pos="{OBSTACLE_PARKED[0]} {OBSTACLE_PARKED[1]} {OBSTACLE_PARKED[2]}">
      <geom name="obstacle" type="box" size="0.02 0.06 0.10" contype="1" conaffinity="1"
            rgba="0.4 0.2 0.5 1"/>
    </body>
  </worldbody>
</mujoco>"""


@dataclass(frozen=True, slots=True, eq=False)
class WorldModel:
    """A compiled scene that any number of worlds may share: it is never written after compiling."""

    mj: Any
    timestep_s: float
    cube_body: int
    cube_geom: int
    obstacle_geom: int
    pad_geoms: tuple[int, int]
    camera_ids: dict[str, int]


@functools.lru_cache(maxsize=4)
def compile_model(timestep_s: float, width: int, height: int) -> WorldModel:
    """Compile the scene, once per time step, image size and process.

    Raises BenchError when MuJoCo refuses it.
    """
    try:
        mj = mujoco.MjModel.from_xml_string(mjcf(timestep_s, width, height))
    except ValueError as error:
        raise BenchError(f"the bench's scene does not compile: {error}") from error

    def geom(name: str) -> int:
        return int(mujoco.mj_name2id(mj, mujoco.mjtObj.mjOBJ_GEOM, name))

    cameras = {name: int(mujoco.mj_name2id(mj, mujoco.mjtObj.mjOBJ_CAMERA, name)) for name in CAMERAS}
    return WorldModel(
        mj=mj,
        timestep_s=timestep_s,
        cube_body=int(mujoco.mj_name2id(mj, mujoco.mjtObj.mjOBJ_BODY, "cube")),
        cube_geom=geom("cube"),
        obstacle_geom=geom("obstacle"),
        pad_geoms=(geom("fixed_pad"), geom("moving_pad")),
        camera_ids=cameras,
    )


def zone_distance(x: float, y: float) -> float:
    """Distance of a point on the table from the zone's centre, m."""
    return float(np.hypot(x - ZONE_XY[0], y - ZONE_XY[1]))
