"""Batches: the same to the bit however they are made, resumed in mid-epoch, shared by ranks, mixed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_helpers import episode, make_store, record

from episodes.store import EpisodeStore
from learner.config import DataConfig
from learner.data import Dataset, EpisodeArrays
from learner.errors import DataError
from learner.loader.batch import Batch, Window
from learner.loader.loader import Loader
from learner.loader.sampler import Part, Sampler, weighted
from learner.loading import load_dataset

SMALL = DataConfig(ram_gib=1e-9)  # nothing fits into memory: decoded when asked for


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EpisodeStore]:
    with make_store(tmp_path_factory.mktemp("loader") / "store", demos=3, corrections=2) as made:
        yield made


@pytest.fixture(scope="module")
def data(store: EpisodeStore) -> Dataset:
    return load_dataset(store, store.ids(), SMALL)


def batches(data: Dataset, sampler: Sampler, count: int, first: int = 0, threads: int = 2) -> list[Batch]:
    with Loader(data, sampler, Window(8), threads=threads) as loader:
        loader.step = first
        return list(itertools.islice(loader, count))


def same(one: Batch, two: Batch) -> bool:
    return (
        torch.equal(one.state, two.state)
        and torch.equal(one.actions, two.actions)
        and torch.equal(one.is_pad, two.is_pad)
        and torch.equal(one.base, two.base)
        and all(torch.equal(one.images[k], two.images[k]) for k in one.images)
    )


def test_batches_do_not_depend_on_where_pictures_come_from_or_on_threads(
    store: EpisodeStore, data: Dataset, tmp_path: Path
) -> None:
    sampler = Sampler([Part(0, len(data), 5)], seed=3)
    held = load_dataset(store, store.ids(), DataConfig())
    cached = load_dataset(store, store.ids(), SMALL.model_copy(update={"scratch": tmp_path}))
    for one, two, three, four in zip(
        batches(data, sampler, 30),
        batches(held, sampler, 30, threads=1),
        batches(cached, sampler, 30),
        (data.batch(sampler.indices(step), 8) for step in range(30)),
        strict=True,
    ):
        assert same(one, two)
        assert same(one, three)
        assert same(one, four)


def test_it_goes_on_in_the_middle_of_an_epoch_to_the_bit(data: Dataset) -> None:
    whole = batches(data, Sampler([Part(0, len(data), 5)], seed=3), 12)
    with Loader(data, Sampler([Part(0, len(data), 5)], seed=3), Window(8)) as loader:
        for _ in itertools.islice(loader, 7):
            pass
        state = loader.state_dict()
    with Loader(data, Sampler([Part(0, len(data), 5)], seed=3), Window(8)) as again:
        again.load_state_dict(state)
        for one, two in zip(whole[7:], again, strict=False):
            assert same(one, two)
    with Loader(data, Sampler([Part(0, len(data), 5)], seed=4), Window(8)) as other, pytest.raises(DataError):
        other.load_state_dict(state)


def test_a_state_of_other_data_or_that_is_none_is_refused(store: EpisodeStore) -> None:
    def steps(count: int) -> EpisodeArrays:
        return replace(episode(count, 30), action=np.full((30, 6), count, np.float32))

    one, two = (Dataset.build([steps(n)], SMALL) for n in (1, 2))
    sampler = Sampler([Part(0, 30, 5)], seed=3)
    with Loader(one, sampler, Window(8)) as loader:
        state = loader.state_dict()
        loader.load_state_dict(state)
        none: list[Any] = [None, [], {}, *({**state, "step": n} for n in (10**30, -1, True))]
        for bad in none:
            with pytest.raises(DataError, match="no state of a loader"):
                loader.load_state_dict(bad)
    with Loader(two, sampler, Window(8)) as other, pytest.raises(DataError, match="the same data"):
        other.load_state_dict(state)


def test_batches_that_are_held_stay_as_they_are(data: Dataset) -> None:
    sampler = Sampler([Part(0, len(data), 4)], seed=0)
    held = batches(data, sampler, 12)
    for step, batch in enumerate(held):
        assert same(batch, data.batch(sampler.indices(step), 8))


def test_ranks_together_draw_what_one_process_draws() -> None:
    parts = [Part(0, 40, 5), Part(40, 9, 3)]
    whole = Sampler(parts, seed=1)
    ranks = [Sampler(parts, seed=1, rank=r, world=4) for r in range(4)]
    for step in range(20):
        drawn = torch.stack([r.indices(step) for r in ranks], dim=1).flatten()
        assert torch.equal(drawn, whole.indices(step))
        assert torch.equal(torch.stack([r.base(step) for r in ranks], dim=1).flatten(), whole.base(step))
    with pytest.raises(DataError, match="cannot be shared by 3"):
        Sampler(parts, seed=1, rank=0, world=3)


@given(weights=st.lists(st.floats(0.05, 1.0), min_size=1, max_size=4), batch=st.integers(4, 12))
@settings(max_examples=40, deadline=None)
def test_a_mix_keeps_its_weights_in_every_stretch_of_batches(weights: list[float], batch: int) -> None:
    sizes = [7, 30, 11, 50][: len(weights)]
    sampler = Sampler(weighted(sizes, weights, batch), seed=0)
    edges = np.cumsum([0, *sizes])
    drawn = torch.stack([sampler.indices(step) for step in range(50)]).numpy()
    assert drawn.shape == (50, batch)
    for number, weight in enumerate(weights):
        mine = ((drawn >= edges[number]) & (drawn < edges[number + 1])).sum(1).cumsum()
        wanted = weight / sum(weights) * batch * np.arange(1, 51)
        assert np.abs(mine - wanted).max() < len(weights) + 0.1
        # Within an epoch nothing comes twice.
        rows = drawn[(drawn >= edges[number]) & (drawn < edges[number + 1])][: sizes[number]]
        assert len(set(rows.tolist())) == len(rows)


def test_a_history_looks_back_into_the_episode_and_is_padded_at_its_start(store: EpisodeStore) -> None:
    names = store.select("kind = 'demo'")[:1] + store.select("interventions > 0")[:1]
    data = load_dataset(store, names, DataConfig(history=3))
    with Loader(data, Sampler([Part(0, len(data), 4)], 0), Window(8, history=3)) as loader:
        assert loader.batch(0).images["front"].shape[:2] == (4, 3)
    data.window = Window(8, history=3)
    first, later, taken_over = data[0], data[5], data[int(data.starts[1])]
    assert first["observation.is_pad"].tolist() == [True, True, False]
    assert torch.equal(first["observation.state"][0], first["observation.state"][2])
    assert not later["observation.is_pad"].any()
    assert torch.equal(later["observation.state"], data.state[3:6])
    assert torch.equal(later["observation.images.front"], data.picture("front", [3, 4, 5]))
    # What came before a take-over was seen, though it may not be imitated.
    assert not taken_over["observation.is_pad"].any()
    np.testing.assert_array_equal(taken_over["observation.state"].numpy(), episode(100).state[8:11])


def test_torchs_loader_takes_data_set_and_sampler(data: Dataset) -> None:
    sampler = Sampler([Part(0, len(data), 4)], seed=0)
    data.window = Window(8)
    loader = torch.utils.data.DataLoader(data, batch_sampler=sampler, num_workers=2)
    for step, batch in enumerate(itertools.islice(loader, 4)):
        mine = data.batch(sampler.indices(step), 8)
        assert torch.equal(batch["observation.images.wrist"], mine.images["wrist"])
        assert torch.equal(batch["action_is_pad"], mine.is_pad)


def test_one_lost_picture_is_refused_unless_told(tmp_path: Path) -> None:
    with EpisodeStore.open(tmp_path / "store") as store:
        name = record(store, episode(0), lost_frames=(9,))
        with pytest.raises(DataError, match="front, the first is step 9"):
            load_dataset(store, [name], DataConfig())
        assert load_dataset(store, [name], DataConfig(gaps="split")).lengths == (9, 14)
        assert load_dataset(store, [name], DataConfig(gaps="accept")).lengths == (24,)


def test_a_damaged_picture_ends_loading_with_one_line(tmp_path: Path) -> None:
    with EpisodeStore.open(tmp_path / "store") as store:
        name = record(store, episode(0))
        data = load_dataset(store, [name], SMALL)
        blob = tmp_path / "store" / "episodes" / name / "frames.front" / "0"
        raw = bytearray(blob.read_bytes())
        raw[len(raw) // 2] ^= 0xFF
        blob.write_bytes(raw)
        loader = Loader(data, Sampler([Part(0, len(data), 24)], 0), Window(4))
        with loader, pytest.raises(DataError, match="fails its checksum") as caught:
            loader.batch(0)
        assert "\n" not in str(caught.value)


def test_waiting_is_counted(data: Dataset) -> None:
    with Loader(data, Sampler([Part(0, len(data), 4)], 0), Window(8)) as loader:
        loader.batch(0)
        assert loader.waited_s > 0.0
