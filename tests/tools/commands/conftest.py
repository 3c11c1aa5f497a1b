"""A home of one's own, a toy store, and a bundle trained on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cli_helpers import TINY, Toys, ratchet, toy_store


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the keys and registries of whoever runs it."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Toys:
    root = tmp_path_factory.mktemp("toys")
    store = toy_store(root / "store")
    done = ratchet(
        "train", "--store", store, "--out", root / "bundle", "--keys", root / "keys", "--steps", 6,
        "--no-register", *TINY,
    )  # fmt: skip
    assert done.code == 0, done.err
    return Toys(store, root / "keys", root / "bundle")
