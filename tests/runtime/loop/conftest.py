"""A loop among fakes, and the store it records into."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from loop_bench import Bench

from episodes.store import EpisodeStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EpisodeStore]:
    with EpisodeStore.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def bench(store: EpisodeStore) -> Bench:
    return Bench(store)
