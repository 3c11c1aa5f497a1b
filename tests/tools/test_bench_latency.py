"""What the latency benchmark calls jerk, what its naive client does, and that its rollouts are repeatable."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hal.bench.world import World
from policies.session import ChunkResult
from runtime.control import ControlConfig
from runtime.guard import GuardLimits
from runtime.line import LineFaults
from runtime.lockstep import LockstepArm
from runtime.nouns import ActionChunk
from runtime.rollout import Rollout, RolloutRunner
from runtime.servo import ServoConfig
from tools.bench.latency import report
from tools.bench.latency_part import Condition
from tools.bench.latency_part import _run as part_run
from tools.bench.latency_seams import NaivePlayer, jerk


def test_jerk_is_the_third_difference_and_a_jump_belongs_to_its_seam() -> None:
    t = np.arange(60) / 30.0
    smooth = [np.full(6, x) for x in t**3]
    even = jerk(smooth, [0, 20, 40], blend=4, rate_hz=30.0)
    assert even.seam_ticks == 2 * (4 + 3)
    assert even.seam / even.seam_ticks == pytest.approx(5 * 36.0, rel=1e-6)  # d³/dt³ t³ = 6, five joints
    assert even.interior / even.interior_ticks == pytest.approx(5 * 36.0, rel=1e-6)
    jumped = [q + (0.1 if i >= 20 else 0.0) for i, q in enumerate(smooth)]
    seen = jerk(jumped, [0, 20, 40], blend=4, rate_hz=30.0)
    assert seen.seam > 100 * even.seam
    assert seen.interior == pytest.approx(even.interior, rel=1e-6)


def test_the_gripper_and_an_episode_without_a_chunk_have_no_jerk() -> None:
    goals = [np.array([0, 0, 0, 0, 0, i % 2], float) for i in range(20)]
    assert jerk(goals, [0, 8], 0, 30.0).seam == 0.0
    assert jerk(goals, [], 0, 30.0).interior_ticks == 0


def test_the_naive_client_stands_still_while_it_asks() -> None:
    rows = np.arange(20, dtype=np.float32)[:, None].repeat(6, axis=1)
    player = NaivePlayer(execute=4)
    assert player.wants(0)
    assert player.offer(ActionChunk(rows, 0, 0, "a", 1, 1.0), 5)
    played = [player.action(tick) for tick in range(5, 11)]
    assert [None if a is None else float(a[0]) for a in played] == [0.0, 1.0, 2.0, 3.0, None, None]
    assert [player.wants(tick) for tick in (8, 9)] == [False, True]


def row(condition: Condition, seed: int, success: bool, seam: float) -> dict[str, Any]:
    jerks = {"seam": seam, "seam_ticks": 1, "interior": 4.0, "interior_ticks": 1}
    return {"condition": condition.name, "seed": seed, "success": success, "ticks": 90, "asked": 6, **jerks}


def test_the_report_holds_ours_to_the_interval_and_the_ratio() -> None:
    conditions = [
        Condition(client, ticks, lost, 30)
        for client in ("ours", "naive")
        for lost in (0.0, 0.01)
        for ticks in (0, 3, 6, 9)
    ]
    rows = [row(c, s, s < 90 or c.client == "ours", 4.0) for c in conditions for s in range(100)]
    good = report(rows, conditions)
    assert good["held"] == {"success": True, "seam_to_interior": True, "all": True}
    assert good["naive"]["added"]["300ms"]["success"] == 0.9
    worse = [
        r | {"success": r["seed"] < 80, "seam": 16.0} if r["condition"] == conditions[3].name else r
        for r in rows
    ]
    bad = report(worse, conditions)
    assert bad["held"] == {"success": False, "seam_to_interior": False, "all": False}
    assert bad["ours"]["added"]["300ms"]["paired_lost"] == 20
    assert bad["ours"]["added"]["300ms"]["seam_to_interior"] == 2.0


def test_the_ensemble_stands_beside_ours_and_has_no_ratio_without_an_interior() -> None:
    conditions = [
        Condition("ours", 0, 0.0, 30),
        Condition("ensemble", 0, 0.0, 30),
        Condition("ensemble", 0, 0.01, 30),
    ]
    rows = [row(c, s, s < 90 or c.client == "ours", 4.0) for c in conditions for s in range(100)]
    all_seams = {"interior": 0.0, "interior_ticks": 0}
    found = report([r | all_seams if "ensemble" in r["condition"] else r for r in rows], conditions)
    for kind in ("added", "lost"):
        figures = found["ensemble"][kind]["0ms"]
        assert (figures["success"], figures["within"], figures["paired_lost"]) == (0.9, False, 10)
        assert figures["seam_to_interior"] is None
    assert found["held"]["all"], "the budget is ours alone"


def test_a_part_runs_each_client_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Nodding()
    monkeypatch.setattr(session, "manifest", SimpleNamespace(monitors=None), raising=False)
    control, arms = ControlConfig(task_limit_s=2.0), [LockstepArm(World(), GuardLimits(), ServoConfig())]
    asked = {}
    for client in ("ours", "naive", "ensemble"):
        (rollout,) = part_run(arms, session, control, Condition(client, 0, 0.0, 30), (3,))  # type: ignore[arg-type]
        asked[client] = rollout.asked / rollout.ticks
    assert asked["ensemble"] > 0.9, "in every tick"
    assert max(asked["naive"], asked["ours"]) < 0.2


class Nodding:
    """A policy that nods: a chunk that depends on the measured pose alone."""

    version = "nodding"

    def infer(self, state: np.ndarray, images: object) -> ChunkResult:
        swing = 0.2 * np.sin(np.arange(32) / 5)[None, :, None]
        return ChunkResult((state[:, None] + swing).astype(np.float32), np.zeros((len(state), 4), np.float32))


def run(delay: int, lost: float = 0.0) -> Rollout:
    arm = LockstepArm(World(), GuardLimits(), ServoConfig())
    control = ControlConfig(task_limit_s=2.0)
    runner = RolloutRunner([arm], Nodding(), control, None, faults=LineFaults(delay, lost))  # type: ignore[arg-type]
    (rollout,) = runner.run([3], "full")
    return rollout


def test_a_rollout_is_its_seed_and_its_line_and_nothing_else() -> None:
    one, again = run(4, 0.2), run(4, 0.2)
    np.testing.assert_array_equal(one.goals, again.goals)
    assert one.seams == again.seams
    assert len(one.goals) == one.ticks
    assert run(0).seams[0] == 0
    assert run(4).seams[0] == 4
