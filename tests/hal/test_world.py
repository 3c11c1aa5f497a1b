"""The lockstep world: deterministic, quantised, breakable on purpose."""

import math

import numpy as np
import pytest
from pydantic import ValidationError

from hal.bench.model import CUBE_HALF, ZONE_XY
from hal.bench.servo_model import ERROR_OVERHEATING, ERROR_OVERLOAD
from hal.bench.world import CUBE_X, CUBE_Y, GAP_SHARE, World, WorldConfig
from hal.errors import BenchError

SPLIT = CUBE_Y[0] + GAP_SHARE * (CUBE_Y[1] - CUBE_Y[0])


def run(world: World, seconds: float) -> None:
    for _ in range(round(seconds * 240)):
        world.step()


def turn(world: World, joint: int, by: float) -> None:
    goal = world.goals
    goal[joint] += by
    world.set_goals(goal)


def trajectory(seed: int) -> bytes:
    world = World()
    world.reset(seed, "covered")
    rng = np.random.default_rng(seed)
    out = b""
    for tick in range(30):
        world.set_goals(world.goals + rng.uniform(-0.05, 0.05, 6))
        run(world, 8 / 240)
        state = world.joints(tick, tick)
        out += state.position.tobytes() + state.effort.tobytes()
        if tick % 10 == 0:
            out += world.render("front").tobytes() + world.render("wrist").tobytes()
    return out


def test_same_seed_same_bytes() -> None:
    assert trajectory(5) == trajectory(5)
    assert trajectory(5) != trajectory(6)


@pytest.mark.parametrize(
    ("region", "low", "high"), [("full", *CUBE_Y), ("gap", CUBE_Y[0], SPLIT), ("covered", SPLIT, CUBE_Y[1])]
)
def test_the_cube_starts_where_the_region_says(region: str, low: float, high: float) -> None:
    world = World()
    for seed in range(40):
        world.reset(seed, region)  # type: ignore[arg-type]
        x, y, z, _ = world.cube_pose()
        assert CUBE_X[0] <= x <= CUBE_X[1]
        assert low <= y <= high
        assert z == pytest.approx(CUBE_HALF)
        task = world.task()
        assert task.in_gap == (y < SPLIT)
        assert not any((task.success, task.lifted, task.dropped))


def test_worlds_share_one_scene_and_do_not_disturb_each_other() -> None:
    worlds = [World() for _ in range(8)]
    for seed, world in enumerate(worlds):
        world.reset(seed)
    assert len({id(world.model) for world in worlds}) == 1
    before = [world.position for world in worlds]
    turn(worlds[0], 0, 0.5)
    run(worlds[0], 1.0)
    assert abs(worlds[0].position[0] - before[0][0]) > 0.4
    for world, position in zip(worlds[1:], before[1:], strict=True):
        np.testing.assert_array_equal(world.position, position)


def test_the_arm_tracks_within_hundredths_of_a_radian() -> None:
    world = World()
    world.reset(1)
    run(world, 1.0)
    assert np.abs(world.position - world.goals).max() < 0.05


def test_values_come_at_the_resolution_of_the_registers() -> None:
    world = World()
    world.reset(2)
    turn(world, 0, 0.3)
    run(world, 0.08)
    state = world.joints(7, 3)
    for values, unit in (
        (state.position, 2 * math.pi / 4096),
        (state.velocity, 0.229 * 2 * math.pi / 60),
        (state.effort, 0.001),
        (state.temperature, 1.0),
        (state.voltage, 0.1),
    ):
        np.testing.assert_allclose(values / unit, np.round(values / unit), atol=1e-6)
    assert (state.t_ns, state.seq) == (7, 3)
    assert state.moving[0]
    assert state.velocity[0] > 0.1
    assert np.abs(state.position - world.position).max() <= math.pi / 4096 + 1e-12


def test_released_motors_let_the_arm_fall_and_energised_ones_hold_it() -> None:
    world = World()
    world.reset(3)
    run(world, 0.3)
    held = world.position
    world.set_torque(False)
    run(world, 1.0)
    assert np.abs(world.position - held)[1:4].max() > 0.2
    world.set_torque(True)
    fallen = world.position
    run(world, 1.0)
    assert np.abs(world.position - fallen).max() < 0.1


def test_a_blocked_arm_overloads_shuts_down_and_can_be_restarted() -> None:
    world = World()
    world.reset(4)
    world.obstruct((0.124, 0.12, 0.1))
    turn(world, 0, 1.2)
    run(world, 1.0)
    assert world.position[0] < 0.8
    assert abs(world.joints(0, 0).effort[0]) > 0.9
    run(world, 1.5)
    assert world.joints(0, 0).hardware_error[0] & ERROR_OVERLOAD
    assert world.joints(0, 0).effort[0] == 0.0
    world.obstruct(None)
    world.clear_errors(0)
    run(world, 1.0)
    assert world.joints(0, 0).hardware_error[0] == 0
    assert world.position[0] == pytest.approx(world.goals[0], abs=0.05)


def test_a_gripper_squeezing_its_own_limit_is_no_overload() -> None:
    world = World()
    world.reset(5)
    turn(world, 5, -1.0)
    run(world, 3.0)
    assert not world.joints(0, 0).hardware_error.any()


def test_added_friction_costs_effort() -> None:
    efforts = []
    for friction in (0.0, 0.15):
        world = World()
        world.reset(6)
        world.faults.friction_nm[0] = friction
        effort = []
        for tick in range(60):
            goal = world.home.copy()
            goal[0] = 0.4 * math.sin(2 * math.pi * tick / 60)
            world.set_goals(goal)
            run(world, 8 / 240)
            effort.append(abs(float(world.joints(0, 0).effort[0])))
        efforts.append(float(np.mean(effort)))
    assert efforts[1] > 1.3 * efforts[0]


def test_added_heat_overheats_a_motor() -> None:
    world = World()
    world.reset(7)
    world.faults.heat_c_s[2] = 20.0
    run(world, 1.0)
    assert 40 < world.joints(0, 0).temperature[2] < 60
    run(world, 2.0)
    errors = world.joints(0, 0).hardware_error
    assert errors[2] & ERROR_OVERHEATING
    assert not errors[[0, 1, 3, 4, 5]].any()


def test_success_is_a_cube_at_rest_in_the_zone() -> None:
    world = World()
    world.reset(8)
    world.place_cube(ZONE_XY[0] + 0.03, ZONE_XY[1], 0.0)
    run(world, 0.2)
    assert world.task().success
    world.place_cube(ZONE_XY[0] + 0.05, ZONE_XY[1], 0.0)
    run(world, 0.2)
    assert not world.task().success


def test_pictures_show_the_cube_and_have_the_size_asked_for() -> None:
    world = World(WorldConfig(width=128, height=96))
    for seed in range(5):
        world.reset(seed)
        for camera in ("front", "wrist"):
            picture = world.render(camera).astype(int)
            assert picture.shape == (96, 128, 3)
            red = (picture[..., 0] > 110) & (picture[..., 0] > 2.5 * picture[..., 1:].max(axis=-1))
            assert red.sum() > 20, f"no cube to be seen by {camera} at seed {seed}"


def test_what_makes_no_sense_is_refused() -> None:
    world = World()
    with pytest.raises(BenchError, match="finite"):
        world.set_goals(np.full(6, np.nan))
    with pytest.raises(BenchError, match="finite"):
        world.set_goals(np.zeros(5))
    with pytest.raises(BenchError, match="1/240"):
        world.step(0.01)
    with pytest.raises(BenchError, match="front, wrist"):
        world.render("side")
    with pytest.raises(ValidationError):
        WorldConfig(width=5)
    with pytest.raises(ValidationError):
        WorldConfig(colour="red")  # type: ignore[call-arg]
