"""Temporal ensembling against ACT's own formula, late answers and swaps."""

from __future__ import annotations

import time

import numpy as np
import pytest

from runtime.ensemble import EnsemblePlayer
from runtime.nouns import ActionChunk

H = 12


def chunk(start: int, rng: np.random.Generator, version: str = "a", epoch: int = 1) -> ActionChunk:
    actions = rng.normal(size=(H, 6)).astype(np.float32)
    return ActionChunk(actions, start, 0, version, epoch, 1.0)


def by_the_paper(chunks: list[ActionChunk], tick: int, decay: float) -> np.ndarray:
    """Zhao et al., algorithm 2: every prediction for this tick, the oldest first, weighed exp(−m·i)."""
    rows = [c.actions[tick - c.start_tick].astype(float) for c in chunks if 0 <= tick - c.start_tick < H]
    weights = np.exp(-decay * np.arange(len(rows)))
    return (weights[:, None] * np.array(rows)).sum(axis=0) / weights.sum()


@pytest.mark.parametrize("decay", [0.01, 0.5, 0.0, -0.3])
@pytest.mark.parametrize("latency", [0, 1, 5])
def test_the_running_mean_is_the_papers_at_any_latency(decay: float, latency: int):
    rng = np.random.default_rng(1)
    player = EnsemblePlayer(decay)
    sent: list[ActionChunk] = []
    arrived: list[ActionChunk] = []
    for tick in range(60):
        if player.wants(tick) and rng.random() > 0.2:  # now and then none is asked for
            sent.append(chunk(tick, rng))
        for due in [c for c in sent if c.start_tick == tick - latency]:
            assert player.offer(due, tick)
            arrived.append(due)
        action = player.action(tick)
        if any(0 <= tick - c.start_tick < H for c in arrived):
            assert action is not None
            np.testing.assert_allclose(action, by_the_paper(arrived, tick, decay), atol=1e-9)
        else:
            assert action is None


def test_versions_are_never_averaged_but_fade():
    player = EnsemblePlayer(0.01, blend=3)
    ones = np.ones((H, 6), np.float32)
    for tick in range(4):
        player.offer(ActionChunk(ones, tick, 0, "a", 1, 1.0), tick)
    player.offer(ActionChunk(3 * ones, 4, 0, "b", 2, 1.0), 4)
    played = [float(player.action(tick)[0]) for tick in range(4, 9)]
    assert played[3:] == pytest.approx([3.0, 3.0])
    assert 1.0 < played[0] < played[1] < played[2] < 3.0
    assert not player.offer(ActionChunk(ones, 5, 0, "a", 1, 1.0), 5), "an older epoch"


def test_where_answers_are_slow_the_newest_alone_counts():
    rng = np.random.default_rng(2)
    player = EnsemblePlayer(0.01, blend=2)
    player.expect(3)
    first, second = chunk(0, rng), chunk(4, rng)
    player.offer(first, 3)
    player.offer(second, 7)
    np.testing.assert_allclose(player.action(9), second.actions[5], atol=1e-9)


def test_what_cannot_be_used_is_dropped():
    rng = np.random.default_rng(0)
    player = EnsemblePlayer(0.01)
    assert player.offer(chunk(5, rng), 6)
    bad = chunk(7, rng)
    bad.actions[3] = np.nan
    assert not any(player.offer(c, 8) for c in (bad, chunk(5, rng), chunk(9, rng)))
    assert not player.offer(chunk(6, rng), 6 + H)
    assert player.dropped == 4
    player.reset()
    assert player.action(6) is None


def test_a_tick_costs_next_to_nothing():
    """A generous bound: some tens of microseconds are usual with a chunk of 100."""
    player = EnsemblePlayer(0.01)
    rows = np.zeros((100, 6), np.float32)
    began = time.process_time()
    for tick in range(500):
        player.offer(ActionChunk(rows, tick, 0, "a", 1, 1.0), tick)
        player.action(tick)
    assert (time.process_time() - began) / 500 < 0.002


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="decay"):
        EnsemblePlayer(2.0)
    with pytest.raises(ValueError, match="every"):
        EnsemblePlayer(0.01, every=0)
