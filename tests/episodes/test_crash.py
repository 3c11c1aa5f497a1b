"""A short run of `ratchet bench crash`, and the proof that it would notice a store that forgets to sync."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.crash.checks import Tallied
from tools.crash.cuts import run_cuts
from tools.crash.kills import run_kills
from tools.crash.oplog import Kind, LoggingLayer

pytestmark = pytest.mark.slow


def quiet(done: int) -> None:
    """Nobody looks."""


def check(total: Tallied, crashes: int) -> None:
    assert total.problems == []
    assert (total.crashes, total.opened, total.published_lost) == (crashes, crashes, 0)
    assert total.published > 0
    assert total.recovered > 0


def test_killed_at_random_instants_nothing_published_is_lost(tmp_path: Path) -> None:
    total = run_kills(tmp_path, 12, 3, quiet)
    check(total, 12)
    assert 0 < total.recovered_h264 < total.recovered, "both kinds of pictures were cut short"
    assert list(tmp_path.glob("store-*")) == []


def test_every_kill_is_looked_at_before_the_next_recorder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(
        "tools.crash.kills.check", lambda root, expected, total, files, label: seen.append(label)
    )
    run_kills(tmp_path, 6, 3, quiet)
    assert [label.removesuffix(" (copy)") for label in seen] == [f"kill {i}" for i in range(6)]
    assert any(label.endswith("(copy)") for label in seen)


def test_power_cut_at_any_file_operation_leaves_a_store_that_keeps_its_promises(tmp_path: Path) -> None:
    total = run_cuts(tmp_path, 200, 1, quiet)
    check(total, 200)
    assert total.seconds_lost_max > 0, "something is always under way"


class Forgetful(LoggingLayer):
    """A store that never syncs, as the simulated disk sees it."""

    def _log(self, kind: Kind, path: Path, *args: object, **more: object) -> None:
        if kind not in ("sync", "syncfs"):
            super()._log(kind, path, *args, **more)  # type: ignore[arg-type]


def test_a_store_that_does_not_sync_is_found_out(tmp_path: Path) -> None:
    total = run_cuts(tmp_path, 60, 1, quiet, Forgetful)
    assert total.published_lost > 0
    assert total.problems
