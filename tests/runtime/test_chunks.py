"""The chunk player: timing, trimming by what was played, blending, and what it refuses."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from runtime.chunks import ChunkPlayer, overlap_error
from runtime.nouns import ActionChunk

H = 8


def make_chunk(
    start: int,
    values: npt.NDArray[np.float32] | float | None = None,
    epoch: int = 1,
    version: str = "a",
    length: int = H,
) -> ActionChunk:
    """A chunk whose row for tick t holds t in every joint, unless other values are given."""
    actions = np.repeat(np.arange(start, start + length, dtype=np.float32)[:, None], 6, axis=1)
    if values is not None:
        actions = np.broadcast_to(np.float32(values), actions.shape).copy()
    return ActionChunk(actions, start, start * 33_333_333, version, epoch, 1.0)


def test_lockstep_plays_each_row_at_its_tick_and_asks_every_execute_ticks():
    player = ChunkPlayer(execute=4)
    asked = []
    for tick in range(20):
        if player.wants(tick):
            asked.append(tick)
            assert player.offer(make_chunk(tick), tick)
        action = player.action(tick)
        assert action is not None
        assert action.dtype == np.float64
        np.testing.assert_allclose(action, tick)
    assert asked == [0, 4, 8, 12, 16]


@pytest.mark.parametrize("latency", [1, 2, 4])
def test_a_late_chunk_is_trimmed_by_the_ticks_that_were_played(latency: int):
    player = ChunkPlayer(execute=4, blend=2)
    player.offer(make_chunk(0), 0)
    pending: int | None = None
    for tick in range(40):
        if pending is not None and tick == pending + latency:
            assert player.offer(make_chunk(pending), tick)
            pending = None
        if pending is None and player.wants(tick):
            pending = tick
        action = player.action(tick)
        assert action is not None, f"tick {tick} has no action"
        np.testing.assert_allclose(action, tick, atol=1e-9)


def test_nothing_to_play_means_none_before_the_first_chunk_and_after_the_last_row():
    player = ChunkPlayer(execute=4)
    assert player.wants(0)
    assert player.action(0) is None
    player.offer(make_chunk(0), 1)
    played = [player.action(tick) for tick in range(1, 40)]
    assert played[0] is not None
    assert played[-1] is None
    assert player.wants(40)


def test_the_new_chunk_fades_in_smoothly_over_the_overlap():
    player = ChunkPlayer(execute=4, blend=3)
    player.offer(make_chunk(0, 0.0), 0)
    player.offer(make_chunk(4, 1.0), 4)
    played = [float(player.action(t)[0]) for t in range(4, 12)]
    part = np.array([0.25, 0.5, 0.75])
    rising = 10 * part**3 - 15 * part**4 + 6 * part**5
    np.testing.assert_allclose(played, [*rising, 1, 1, 1, 1, 1])


def test_where_the_old_chunk_ends_its_last_difference_fades_out():
    player = ChunkPlayer(execute=H, blend=3)
    player.offer(make_chunk(0, 0.0), 0)
    player.offer(make_chunk(4, 1.0), H - 1)
    played = [float(player.action(tick)[0]) for tick in range(H - 1, H + 3)]
    assert played == pytest.approx([0.1035, 0.5, 0.8965, 1.0], abs=1e-3)


def play(player: ChunkPlayer, latency: int, ticks: int) -> tuple[list[float], list[int]]:
    """The loop's side against answers that take ``latency`` ticks: rows played, ticks that were held."""
    rows, held, pending = [], [], None
    player.expect(latency)
    for tick in range(ticks):
        if pending is not None and tick == pending + latency:
            base = rows[pending] if pending else 0.0
            values = np.repeat((base + np.arange(32, dtype=np.float32))[:, None], 6, axis=1)
            assert player.offer(ActionChunk(values, pending, 0, "a", 1, 1.0), tick)
            pending = None
        if pending is None and player.wants(tick):
            pending = tick
        action = player.action(tick)
        if action is None:
            held.append(tick)
        rows.append(rows[-1] if action is None and rows else 0.0 if action is None else float(action[0]))
    return rows, held


def test_a_long_way_slows_the_arm_and_never_stops_it():
    rows, held = play(ChunkPlayer(execute=16, blend=0, slack=3), latency=9, ticks=200)
    assert held == list(range(9)), "only before the first answer"
    steps = np.diff(rows[16:])
    assert steps.min() >= 0.3
    assert np.abs(np.diff(steps)).max() <= 0.21, "the pace changes gently"
    assert 0.6 < steps.mean() < 0.8


def test_up_to_the_slack_the_pace_is_the_policys_own():
    rows, held = play(ChunkPlayer(execute=16, blend=0, slack=3), latency=3, ticks=100)
    assert held == [0, 1, 2]
    np.testing.assert_allclose(np.diff(rows[10:]), 1.0)


def test_while_nothing_is_played_a_chunk_loses_no_row():
    player = ChunkPlayer(execute=4)
    assert [player.action(tick) for tick in range(6)] == [None] * 6
    assert player.offer(make_chunk(1, length=3), 6)
    assert player.action(6)[0] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("late", "tick", "why"),
    [
        (make_chunk(2, 9.0), 10, "older observation than the one playing"),
        (make_chunk(4, 9.0), 10, "same observation again"),
        (make_chunk(5, 9.0, epoch=0), 6, "older epoch"),
        (make_chunk(5, 9.0), 5 + H, "no row left"),
        (make_chunk(9, 9.0), 6, "an observation of the future"),
        (make_chunk(5, float("nan")), 6, "not finite"),
    ],
)
def test_refused_chunks_leave_the_plan_alone(late: ActionChunk, tick: int, why: str):
    player = ChunkPlayer(execute=4, blend=0)
    player.offer(make_chunk(4, 1.0), 4)
    assert not player.offer(late, tick), why
    assert player.dropped == 1
    np.testing.assert_array_equal(player.action(6), 1.0)
    assert player.chunk.start_tick == 4


def test_overlap_error_leaves_the_gripper_out_and_does_not_depend_on_latency():
    new = make_chunk(4, 0.5)
    new.actions[:, 5] = 100.0
    errors = []
    for latency in (0, 1, 3):
        player = ChunkPlayer(execute=4)
        player.offer(make_chunk(0, 0.25), 0)
        assert player.overlap_error is None
        player.offer(new, 4 + latency)
        errors.append(player.overlap_error)
    assert errors == pytest.approx([0.25, 0.25, 0.25])


def test_overlap_error_is_unknown_without_overlap_and_across_versions():
    assert overlap_error(None, make_chunk(0)) is None
    assert overlap_error(make_chunk(0), make_chunk(H)) is None
    assert overlap_error(make_chunk(0), make_chunk(4, version="b")) is None
    assert overlap_error(make_chunk(0), make_chunk(H - 1)) == pytest.approx(0.0)


def test_reset_forgets_the_chunk_and_its_epoch():
    player = ChunkPlayer(execute=4)
    player.offer(make_chunk(50, epoch=9), 50)
    player.reset()
    assert player.action(50) is None
    assert player.offer(make_chunk(0, epoch=1), 0)


def test_the_returned_action_is_the_callers_own():
    player = ChunkPlayer(execute=4)
    player.offer(make_chunk(0, 1.0), 0)
    player.action(0)[:] = 7.0
    np.testing.assert_array_equal(player.action(0), 1.0)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="execute"):
        ChunkPlayer(execute=0)
    with pytest.raises(ValueError, match="blend"):
        ChunkPlayer(execute=4, blend=-1)
    with pytest.raises(ValueError, match="slack"):
        ChunkPlayer(execute=4, slack=0)
