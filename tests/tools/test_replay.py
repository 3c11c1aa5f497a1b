"""What `ratchet replay` sends, and which episodes it refuses."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from episodes.reader import StreamData
from hal.types import JOINTS
from tools.commands.replay import Player, recorded_actions, schedule
from tools.errors import UsageError

NAMES = tuple(f"{joint}.pos" for joint in JOINTS)
TICK_NS = 33_333_333


def stream(values: np.ndarray, unit: str = "rad", names: tuple[str, ...] = NAMES) -> StreamData:
    n = len(values)
    return StreamData(10**15 + np.arange(n) * TICK_NS, np.arange(n), values, unit, names)


def test_the_approach_is_slow_and_even_from_where_the_arm_is() -> None:
    start, actions = np.zeros(6), np.tile([1.0, -0.5, 0.0, 0.0, 0.0, 0.2], (30, 1))
    when, where = schedule(start, np.arange(30) / 30, actions)
    steps = np.diff(np.vstack([start, where]), axis=0)
    speed = np.abs(steps[1:]).max(axis=1) / np.diff(when)
    assert speed.max() <= 0.5 * 1.05
    assert np.abs(where[0] - start).max() < 0.02, "it starts where the arm is"
    assert when[-1] == pytest.approx(1.0 / 0.5 + 29 / 30, abs=0.05)
    np.testing.assert_array_equal(where[-30:], actions)


def test_an_arm_that_stands_at_the_beginning_starts_at_once() -> None:
    actions = np.linspace(0.0, 1.0, 30)[:, None] * np.ones(6)
    when, where = schedule(actions[0], np.arange(30) / 30, actions)
    assert len(when) == 31
    np.testing.assert_array_equal(where[1:], actions)


def test_a_gap_in_the_recording_is_bridged_and_the_pace_kept() -> None:
    actions = np.array([0.0, 0.1, 0.7])[:, None] * np.ones(6)
    when, where = schedule(actions[0], np.array([0.0, 1 / 30, 1 / 30 + 0.5]), actions)
    assert np.diff(when).max() <= 1.5 / 30
    assert when[-1] - when[1] == pytest.approx(1 / 30 + 0.5)
    assert np.diff(where[2:, 0]).max() <= 0.6 / 0.5 / 30 * 1.05
    assert np.diff(where[:, 0]).min() >= 0.0


def test_what_a_late_machine_missed_is_skipped_and_the_last_goal_kept() -> None:
    when, where = np.arange(30) / 30, np.arange(30)[:, None] * np.ones(6)

    async def play() -> tuple[Player, list[int]]:
        player = Player(when, where, asyncio.Event())
        seen = []
        async for goal, _ in player.goals():
            seen.append(int(goal[0]))
            if len(seen) in (3, 6):
                time.sleep(0.5)  # noqa: ASYNC251
        return player, seen

    player, seen = asyncio.run(play())
    assert player.finished
    assert seen[0] == 0
    assert seen[3] >= seen[2] + 13, "no burst"
    assert seen[-1] == 29
    assert player.skipped == 30 - len(seen)


def test_another_robots_episode_is_refused() -> None:
    sound = np.zeros((3, 6), np.float32)
    times_s, actions = recorded_actions("e", stream(sound))
    np.testing.assert_allclose(times_s, np.arange(3) / 30, atol=1e-6)
    assert actions.shape == (3, 6)
    with pytest.raises(UsageError, match="no actions"):
        recorded_actions("e", None)
    with pytest.raises(UsageError, match=r"another robot.*wheel"):
        recorded_actions("e", stream(sound[:, :1], names=("wheel",)))
    with pytest.raises(UsageError, match="another robot"):
        recorded_actions("e", stream(sound, names=NAMES[::-1]))
    with pytest.raises(UsageError, match="in deg, not rad"):
        recorded_actions("e", stream(sound, unit="deg"))
    with pytest.raises(UsageError, match="not finite"):
        recorded_actions("e", stream(np.full((3, 6), np.nan)))
