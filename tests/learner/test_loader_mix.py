"""Selections by SQL, and batches mixed out of several."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from learner_helpers import make_store, tiny_config

from episodes.errors import QueryError
from episodes.store import EpisodeStore
from learner.config import DataConfig
from learner.errors import DataError
from learner.loader.mix import choose, parts_of
from learner.loader.sampler import Sampler
from learner.loading import load_dataset
from learner.train import train


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EpisodeStore]:
    with make_store(tmp_path_factory.mktemp("mix") / "store", demos=3, corrections=2) as made:
        yield made


def test_a_selection_is_a_condition_or_a_whole_statement(store: EpisodeStore) -> None:
    flagged = store.select("task = 'toy' and flagged")
    assert flagged == ["e100", "e101"]
    assert (
        store.select("select id from episodes where task = 'toy' and flagged order by id desc")
        == flagged[::-1]
    )
    assert sorted(store.select("SELECT episode_id FROM flags WHERE kind = 'timeout'")) == flagged
    with pytest.raises(QueryError, match="none of which is an episode's id"):
        store.select("SELECT task FROM episodes")
    for changing in (
        "DELETE FROM episodes",
        "true; DELETE FROM episodes",
        "SELECT id FROM 'catalogue.sqlite'",
    ):
        with pytest.raises(QueryError):
            store.select(changing)
    assert len(store.ids()) == 5


def test_batches_hold_each_source_in_its_share(store: EpisodeStore) -> None:
    sources = choose([(3, "flagged"), (1, "true")], store.select)
    assert [s.episodes for s in sources] == [("e100", "e101"), ("e0", "e1", "e2")]
    data = load_dataset(store, [name for s in sources for name in s.episodes], DataConfig())
    sampler = Sampler(parts_of(data, sources, 8), seed=0)
    flagged = sum(n for n, name in zip(data.lengths, data.episodes, strict=True) if name in ("e100", "e101"))
    for step in range(10):
        assert int((sampler.indices(step) < flagged).sum()) == 6
    with pytest.raises(DataError, match="no episode is left for 'true'"):
        choose([(1, "true"), (1, "true")], store.select)


def test_training_takes_a_mix_and_says_how_long_it_waited(store: EpisodeStore) -> None:
    sources = choose([(0.9, "kind = 'demo'"), (0.1, "flagged")], store.select)
    data = load_dataset(store, [name for s in sources for name in s.episodes], DataConfig())
    config = tiny_config(steps=4)
    mixed = train(data, config, parts=parts_of(data, sources, config.batch))
    again = train(data, config, parts=parts_of(data, sources, config.batch))
    plain = train(data, config)
    assert 0.0 <= mixed.waiting < 1.0
    weights = [result.model.state_dict()["action_head.weight"] for result in (mixed, again, plain)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
