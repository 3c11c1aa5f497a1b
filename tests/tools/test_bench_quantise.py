"""`ratchet bench quantise` on recordings: both forms predict the held-out episodes, and only those."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from bench_helpers import figures

from episodes.store import EpisodeStore
from tests.learner.learner_helpers import episode, record
from tests.tiny_policy import Policies
from tools.bench.quantise import LAST_TRAINING, command

TICKS = 12


def test_both_forms_are_held_against_the_episodes_not_trained_on(policies: Policies, tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    shutil.copytree(policies.first.path, tmp_path / "banana")
    shutil.copytree(policies.trust, tmp_path / "keys")
    with EpisodeStore.open(tmp_path / "store") as store:
        for index in range(LAST_TRAINING, LAST_TRAINING + 3):
            record(store, episode(index, TICKS), provenance={"episode_index": index})
    found = figures(command, "--dataset", tmp_path / "dataset", "--work", tmp_path)
    offline = found["offline"]
    assert (offline["episodes"], offline["predictions"]) == (2, 2 * TICKS)
    assert offline["l1_fp32"] > 0
    assert offline["growth"] == pytest.approx(offline["l1_int8"] / offline["l1_fp32"] - 1, abs=1e-4)
    assert offline["held"] == (max(offline["growth"], offline["growth_in_std"]) < offline["budget"])
    assert "--demo" in found["closed_loop_left_out"]
    assert "closed_loop" not in found
