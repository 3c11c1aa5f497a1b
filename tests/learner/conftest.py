"""One thread for torch, and a trained toy policy shared by all tests here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from learner_helpers import Shop, episode, tiny_config

from learner.bundles import export
from learner.data import Dataset
from learner.train import TrainResult, train
from policies.keys import TrustStore, ensure_key


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    return Dataset.build([episode(seed) for seed in range(12)], tiny_config().data)


@pytest.fixture(scope="session")
def champion(dataset: Dataset) -> TrainResult:
    return train(dataset, tiny_config(steps=300, lr=2e-3))


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory, champion: TrainResult, dataset: Dataset) -> Shop:
    root = tmp_path_factory.mktemp("shop")
    key = ensure_key(root / "keys")
    bundle = export(champion, dataset, root / "bundle", key, name="toy", config=tiny_config())
    return Shop(root / "keys", key, TrustStore.load(root / "keys"), bundle)
