"""What may be cloned, what belongs together, and what a batch is made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_helpers import episode, make_store, record

from episodes.store import EpisodeStore
from learner.config import DataConfig
from learner.data import Dataset, cut_segments
from learner.errors import DataError
from learner.loader.sampler import Part, Sampler
from learner.loading import load_dataset

CONFIG = DataConfig()


def test_steps_before_the_take_over_are_never_cloned() -> None:
    data = Dataset.build([episode(0, ticks=24, taken_over_at=10)], CONFIG)
    assert len(data) == 14
    np.testing.assert_array_equal(data.state.numpy(), episode(0, ticks=24).state[10:])


def test_chunks_end_with_their_segment() -> None:
    data = Dataset.build([episode(0, ticks=12), episode(1, ticks=12)], CONFIG)
    batch = data.batch(torch.tensor([10, 12]), chunk=4)
    assert batch.is_pad.tolist() == [[False, False, True, True], [False] * 4]
    first, second = episode(0, ticks=12).action, episode(1, ticks=12).action
    np.testing.assert_array_equal(batch.actions[0].numpy(), first[[10, 11, 11, 11]])
    np.testing.assert_array_equal(batch.actions[1].numpy(), second[:4])


def test_pauses_are_trimmed_only_where_asked() -> None:
    e = episode(0, ticks=80)
    state, action = e.state.copy(), e.action.copy()
    state[20:60], action[20:60] = state[20], action[20]
    clone = np.ones(80, bool)
    whole = cut_segments(state, action, clone, [], 30.0, CONFIG, trim=False)
    trimmed = cut_segments(state, action, clone, [], 30.0, CONFIG, trim=True)
    assert [len(s) for s in whole] == [80]
    assert len(trimmed) == 1
    assert set(range(80)) - set(trimmed[0].tolist()) == set(range(21, 60))


def test_a_short_stop_is_no_pause() -> None:
    e = episode(0, ticks=80)
    state, action = e.state.copy(), e.action.copy()
    state[20:45], action[20:45] = state[20], action[20]
    kept = cut_segments(state, action, np.ones(80, bool), [], 30.0, CONFIG, trim=True)
    assert sum(len(s) for s in kept) == 80


@given(
    clone=st.lists(st.booleans(), min_size=1, max_size=40),
    cuts=st.lists(st.integers(min_value=0, max_value=40), max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_segments_hold_exactly_the_cloneable_steps_in_order(clone: list[bool], cuts: list[int]) -> None:
    n = len(clone)
    moving = np.arange(n, dtype=np.float32)[:, None]
    segments = cut_segments(moving, moving, np.array(clone), cuts, 30.0, CONFIG, trim=True)
    joined = np.concatenate(segments) if segments else np.empty(0, np.int64)
    np.testing.assert_array_equal(joined, np.flatnonzero(clone))
    for steps in segments:
        np.testing.assert_array_equal(np.diff(steps), 1)
        assert not any(c in steps[1:] for c in cuts)


def test_every_step_is_drawn_once_an_epoch_whatever_the_batch() -> None:
    sampler = Sampler([Part(0, 10, 3), Part(10, 4, 2)], seed=5)
    rows = torch.stack([sampler.indices(s) for s in range(10)])
    assert sorted(rows[:, :3].flatten().tolist()) == sorted(list(range(10)) * 3)
    assert sorted(rows[:, 3:].flatten().tolist()) == sorted(list(range(10, 14)) * 5)
    assert sampler.base().tolist() == [True] * 3 + [False] * 2


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    parts = [Part(0, 100, 8)]
    ahead = Sampler(parts, seed=1)
    for step in range(30):
        ahead.indices(step)
    assert torch.equal(ahead.indices(7), Sampler(parts, seed=1).indices(7))
    assert not torch.equal(Sampler(parts, seed=2).indices(7), ahead.indices(7))


def test_nan_is_refused() -> None:
    e = episode(0)
    e.action[3, 2] = np.nan
    with pytest.raises(DataError, match="action"):
        Dataset.build([e], CONFIG)


def test_other_picture_sizes_are_refused() -> None:
    small = {k: v[:, :16, :16] for k, v in episode(1).images.items()}
    with pytest.raises(DataError, match="shapes"):
        Dataset.build([episode(0), replace(episode(1), images=small)], CONFIG)


def test_a_store_gives_what_was_recorded(tmp_path: Path) -> None:
    with make_store(tmp_path / "store", demos=3, corrections=2) as store:
        demos = load_dataset(store, store.select("kind = 'demo'"), CONFIG)
        assert len(demos) == 3 * 24
        np.testing.assert_array_equal(demos.state.numpy()[:24], episode(0).state)
        error = demos.picture("front").numpy()[:24].astype(int) - episode(0).images["front"]
        assert np.abs(error).mean() < 3.0  # JPEG
        fixed = load_dataset(store, store.select("interventions > 0"), CONFIG, trim=True)
        assert fixed.lengths == (14, 14)
        np.testing.assert_array_equal(fixed.state.numpy()[:14], episode(100).state[10:])


def test_frames_belong_to_their_step_when_one_was_lost(tmp_path: Path) -> None:
    with EpisodeStore.open(tmp_path / "store") as store:
        e = episode(0)
        for i in range(24):
            e.images["front"][i] = 10 * i
        record(store, e, lost_frames=(5, 6))
        with pytest.raises(DataError, match="2 steps without a fresh frame of camera front"):
            load_dataset(store, [e.episode], CONFIG)
        data = load_dataset(store, [e.episode], DataConfig(gaps="accept"))
        seen = data.picture("front").float().mean(dim=(1, 2, 3))
        newest = np.array([4 if i in (5, 6) else i for i in range(24)])
        np.testing.assert_allclose(seen.numpy(), 10 * newest, atol=1.5)


def test_stale_frames_are_refused_unless_told(tmp_path: Path) -> None:
    with EpisodeStore.open(tmp_path / "store") as store:
        name = record(store, episode(0), lost_frames=tuple(range(8, 16)))
        with pytest.raises(DataError, match="without a fresh frame of camera front"):
            load_dataset(store, [name], CONFIG)
        split = load_dataset(store, [name], DataConfig(gaps="split"))
        assert split.lengths == (8, 8)


def test_gaps_are_refused_unless_told(tmp_path: Path) -> None:
    with EpisodeStore.open(tmp_path / "store") as store:
        name = record(store, episode(0), skip=(10, 11, 12))
        with pytest.raises(DataError, match="1 gaps, the first after step 9"):
            load_dataset(store, [name], CONFIG)
        split = load_dataset(store, [name], DataConfig(gaps="split"))
        assert split.lengths == (10, 11)


def test_an_unknown_episode_is_one_line(tmp_path: Path) -> None:
    with EpisodeStore.open(tmp_path / "store") as store, pytest.raises(DataError) as caught:
        load_dataset(store, ["nothing"], CONFIG)
    assert "\n" not in str(caught.value)


def test_pictures_can_be_reduced(tmp_path: Path) -> None:
    with make_store(tmp_path / "store", demos=1, corrections=0) as store:
        data = load_dataset(store, ["e0"], DataConfig(image_size=(16, 24), cameras=("wrist",)))
        assert data.sizes == {"wrist": (16, 24)}
