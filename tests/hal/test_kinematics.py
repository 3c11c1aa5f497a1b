"""The closed-form kinematics agree with themselves and with the compiled scene."""

import math

import mujoco
import numpy as np
import pytest

from hal.bench import kinematics as kin
from hal.bench.model import compile_model


def _poses(count: int) -> list[kin.ToolPose]:
    rng = np.random.default_rng(0)
    poses = []
    for _ in range(count):
        radius, height = rng.uniform(0.14, 0.22), rng.uniform(0.01, 0.08)
        pitch = kin.steepest_pitch(radius, height)
        poses.append(
            kin.ToolPose(rng.uniform(-1, 1), radius, height, pitch, rng.uniform(-0.8, 0.8), rng.uniform(0, 1))
        )
    return poses


def test_inverse_undoes_forward() -> None:
    for pose in _poses(200):
        again = kin.forward(kin.inverse(pose))
        np.testing.assert_allclose(again.as_array(), pose.as_array(), atol=1e-9)


def test_forward_agrees_with_the_scene() -> None:
    model = compile_model(1 / 240, 96, 96).mj
    data = mujoco.MjData(model)
    hand = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, "hand")
    for pose in _poses(50):
        data.qpos[:6] = kin.inverse(pose)
        mujoco.mj_kinematics(model, data)
        tool = data.xpos[hand] + data.xmat[hand].reshape(3, 3)[:, 0] * kin.TOOL_OFFSET
        np.testing.assert_allclose(tool, pose.xyz, atol=1e-9)


def test_out_of_reach_goes_to_the_nearest_reachable_point() -> None:
    far = kin.ToolPose(0.3, 0.6, 0.02, math.pi / 4, 0.0, 0.5)
    q = kin.inverse(far)
    assert np.isfinite(q).all()
    reached = kin.forward(q)
    assert reached.radius < far.radius
    assert reached.azimuth == pytest.approx(0.3)


def test_the_hand_tilts_only_where_it_must() -> None:
    assert kin.steepest_pitch(0.15, 0.02) == pytest.approx(math.pi / 2)
    assert math.radians(40) < kin.steepest_pitch(0.24, 0.02) < math.radians(80)
