"""The health model on the bench's own arm: which motor, and what about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from episodes.spec import EpisodeSpec, StreamSpec
from episodes.store import EpisodeStore
from episodes.writer import WriterConfig
from hal.bench.demonstrator import Demonstrator
from hal.bench.world import World
from learner.errors import HealthError
from learner.health.features import inverse_dynamics, ridge
from learner.health.model import KOCH_JOINTS, HealthModel
from learner.health.telemetry import Telemetry, motion, read_telemetry

WORLD: list[World] = []


def demonstrate(seed: int, joint: str = "", friction: float = 0.0, heat: float = 0.0) -> Telemetry:
    """One demonstration in lockstep, the goals interpolated as the servo core does."""
    if not WORLD:
        WORLD.append(World())
    world = WORLD[0]
    world.faults.clear()
    if joint:
        world.faults.friction_nm[KOCH_JOINTS.index(joint)] = friction
        world.faults.heat_c_s[KOCH_JOINTS.index(joint)] = heat
    world.reset(seed)
    expert = Demonstrator(world, seed)
    expert.begin()
    rows, goal = [], world.goals
    while not expert.done and len(rows) < 240:
        now = world.joints(0, 0)
        rows.append((now.position, now.effort, now.temperature, goal))
        wanted = expert.step()
        for step in range(8):
            world.set_goals(goal + (wanted - goal) * (step + 1) / 8)
            world.step()
        goal = wanted
    position, effort, temperature, goals = (np.array(column) for column in zip(*rows, strict=True))
    world.faults.clear()
    return Telemetry(position, effort, temperature, goals, 30.0, str(seed))


@pytest.fixture(scope="module")
def model() -> HealthModel:
    return HealthModel.fit([demonstrate(seed) for seed in range(45)])


def test_a_healthy_arm_is_left_alone(model: HealthModel) -> None:
    flagged = [h for seed in range(500, 512) for h in model.score(demonstrate(seed)) if h.flagged]
    assert len(flagged) <= 1, flagged


@pytest.mark.parametrize("joint", ["elbow_flex", "wrist_flex", "gripper"])
def test_friction_is_found_in_the_right_motor(model: HealthModel, joint: str) -> None:
    for seed in (700, 701):
        health = {h.joint: h for h in model.score(demonstrate(seed, joint, friction=0.08))}
        assert health[joint].flagged
        assert health[joint].evidence["worst"] == "friction"
        assert health[joint].score == max(h.score for h in health.values())


@pytest.mark.parametrize("joint", ["shoulder_lift", "wrist_roll"])
def test_heat_is_found_in_the_right_motor(model: HealthModel, joint: str) -> None:
    health = {h.joint: h for h in model.score(demonstrate(800, joint, heat=1.5))}
    assert health[joint].flagged
    assert health[joint].evidence["worst"] == "heat"
    assert float(health[joint].evidence["heat_c"]) > 2.0
    assert sum(h.flagged for h in health.values()) == 1


def test_a_weak_drive_is_told_from_friction(model: HealthModel) -> None:
    healthy = demonstrate(900)
    effort = healthy.effort.copy()
    effort[:, 1] *= 0.6
    health = model.score(replace(healthy, effort=effort))[1]
    assert health.flagged
    assert health.evidence["worst"] == "drive"


def test_a_motor_that_did_not_move_is_not_judged_for_friction(model: HealthModel) -> None:
    still = demonstrate(901)
    position, goal = still.position.copy(), still.goal.copy()
    position[:, 4], goal[:, 4] = position[0, 4], position[0, 4]
    health = model.score(replace(still, position=position, goal=goal))[4]
    assert health.evidence["ticks"] == 0
    assert health.evidence["friction"] == 0.0


def test_it_is_kept_in_one_file(model: HealthModel, tmp_path: Path) -> None:
    path = tmp_path / "health.safetensors"
    model.save(path)
    again = HealthModel.load(path)
    episode = demonstrate(902, "elbow_flex", friction=0.05)
    assert again.score(episode) == model.score(episode)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(HealthError, match="cannot be read"):
        HealthModel.load(path)


def test_telemetry_is_read_from_the_store(tmp_path: Path) -> None:
    healthy = demonstrate(5)
    names = ("observation.state", "observation.effort", "observation.temperature", "action")
    streams = tuple(StreamSpec(name=name, dtype="float64", shape=(6,)) for name in names)
    with EpisodeStore.open(tmp_path / "store") as store:
        writer = store.begin(
            EpisodeSpec(task="toy", streams=streams), config=WriterConfig(wait_when_full=True)
        )
        for i in range(len(healthy.position)):
            # What is recorded as a tick's action is in force when the next row is measured.
            goal = healthy.goal[min(i + 1, len(healthy.goal) - 1)]
            row = (healthy.position[i], healthy.effort[i], healthy.temperature[i], goal)
            for name, value in zip(names, row, strict=True):
                writer.append(name, i * 33_333_333, i, value)
        read = read_telemetry(store.read(writer.end("success", "done").wait(30).id))
    np.testing.assert_array_equal(read.effort, healthy.effort)
    np.testing.assert_array_equal(read.goal[1:], healthy.goal[1:])
    assert read.fps == 30.0


def test_too_few_or_broken_telemetry_is_refused(model: HealthModel) -> None:
    one = demonstrate(1)
    with pytest.raises(HealthError, match="5 healthy episodes are too few"):
        HealthModel.fit([one] * 5)
    short = replace(one, **{k: getattr(one, k)[:10] for k in ("position", "effort", "temperature", "goal")})
    with pytest.raises(HealthError, match="10 ticks"):
        model.score(short)
    broken = one.effort.copy()
    broken[3, 3] = np.nan
    with pytest.raises(HealthError, match="broken"):
        model.score(replace(one, effort=broken))


def test_holding_the_cube_is_not_free_motion() -> None:
    free = motion(demonstrate(2)).free
    assert 0.2 < free.mean() < 0.95


def test_ridge_recovers_a_known_law() -> None:
    moving = motion(demonstrate(3))
    features = inverse_dynamics(moving)
    weights = np.random.default_rng(0).normal(size=features.shape[1])
    target = features @ weights
    fitted = features @ ridge(features, target, 1e-8)
    assert np.abs(fitted - target).max() < 0.02 * np.abs(target).max()
