"""The scripted expert succeeds from every start, takes over from any mess, and moves like a person."""

import numpy as np
import pytest

from hal.bench import kinematics as kin
from hal.bench.demonstrator import Demonstrator
from hal.bench.world import Region, World
from hal.types import Vector


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def tick(world: World, goal: Vector) -> None:
    world.set_goals(goal)
    for _ in range(8):
        world.step()


def demonstrate(world: World, seed: int, limit: int = 400) -> list[Vector]:
    expert = Demonstrator(world, seed)
    expert.begin()
    path = [world.goals]
    while not expert.done and len(path) < limit:
        path.append(expert.step())
        tick(world, path[-1])
    return path


@pytest.mark.parametrize("region", ["covered", "gap"])
def test_every_demonstration_places_the_cube(world: World, region: Region) -> None:
    lengths = []
    for seed in range(30):
        world.reset(seed, region)
        path = demonstrate(world, seed)
        assert world.task().success, f"seed {seed}: {world.task()}"
        lengths.append(len(path) - 1)
    assert 90 < np.mean(lengths) < 130
    assert max(lengths) < 150


def test_motion_is_smooth_and_within_a_servos_speed(world: World) -> None:
    for seed in range(6):
        world.reset(seed)
        path = np.stack(demonstrate(world, seed))
        velocity = np.diff(path, axis=0) * 30
        acceleration = np.diff(velocity, axis=0) * 30
        assert np.abs(velocity).max() < 2.5
        assert np.abs(acceleration).max() < 30


def test_seeds_vary_the_motion_and_repeat_it(world: World) -> None:
    paths = []
    for seed in (1, 1, 2):
        world.reset(11)
        paths.append(np.stack(demonstrate(world, seed)))
    np.testing.assert_array_equal(paths[0], paths[1])
    count = min(len(paths[0]), len(paths[2]))
    assert np.abs(paths[0][:count] - paths[2][:count]).max() > 0.01


def test_it_takes_over_an_arm_that_is_anywhere(world: World) -> None:
    for seed in range(15):
        rng = np.random.default_rng(seed)
        world.reset(seed)
        world.place_cube(rng.uniform(0.11, 0.225), rng.uniform(-0.11, 0.16), rng.uniform(-3, 3))
        radius, height = rng.uniform(0.11, 0.23), rng.uniform(0.02, 0.18)
        pitch = kin.steepest_pitch(radius, height) + rng.uniform(-0.5, 0.3)
        pose = kin.ToolPose(
            rng.uniform(-0.8, 0.9), radius, height, pitch, rng.uniform(-0.8, 0.8), rng.uniform(0, 1)
        )
        start, target = world.goals, kin.inverse(pose)
        for k in range(30):
            tick(world, start + (target - start) * (k + 1) / 30)
        path = demonstrate(world, seed)
        assert world.task().success, f"seed {seed}: {world.task()}"
        assert np.abs(path[1] - path[0]).max() < 0.2


def test_it_takes_over_from_a_clumsy_attempt(world: World) -> None:
    for seed in range(15):
        rng = np.random.default_rng(seed)
        world.reset(seed, "gap")
        clumsy = Demonstrator(world, seed)
        clumsy.begin()
        error = rng.normal(0, 0.08, 6)
        for _ in range(int(rng.integers(20, 100))):
            tick(world, clumsy.step() + error)
        demonstrate(world, seed + 1)
        assert world.task().success, f"seed {seed}: {world.task()}"


def test_it_goes_on_with_a_cube_it_finds_in_the_gripper(world: World) -> None:
    world.reset(4)
    first = Demonstrator(world, 4)
    first.begin()
    while world.cube_pose()[2] < 0.045:
        tick(world, first.step())
    lowest = world.cube_pose()[2]
    second = Demonstrator(world, 9)
    second.begin()
    for _ in range(20):
        tick(world, second.step())
        lowest = min(lowest, world.cube_pose()[2])
    assert lowest > 0.03
    while not second.done:
        tick(world, second.step())
    assert world.task().success


def test_it_gives_up_on_a_cube_out_of_reach(world: World) -> None:
    world.reset(1)
    world.place_cube(0.45, 0.3, 0.0)
    path = demonstrate(world, 1, limit=2000)
    assert len(path) < 1000
    assert not world.task().success


def test_a_dropped_cube_is_reported(world: World) -> None:
    world.reset(2)
    expert = Demonstrator(world, 2)
    expert.begin()
    while world.cube_pose()[2] < 0.045:
        tick(world, expert.step())
    assert world.task().lifted
    goal = world.goals
    goal[5] = 0.9
    for _ in range(30):
        tick(world, goal)
    task = world.task()
    assert task.dropped
    assert not task.success
