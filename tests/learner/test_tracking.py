"""MLflow on a local file: runs, metrics by step, aliases; nothing on the console."""

from __future__ import annotations

from pathlib import Path

import pytest

from learner.errors import TrackingError
from learner.tracking import Tracker


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    return Tracker(tmp_path_factory.mktemp("tracking"), "toy")


def test_a_run_keeps_its_curve_and_parameters(tracker: Tracker) -> None:
    with tracker.run("one", {"lr": 1e-3, "model": {"dim": 32}}, {"round": 1}) as run:
        run.metrics("loss", [(step, 1.0 / (step + 1)) for step in range(1200)])
    kept = tracker.client.get_run(run.id)
    assert kept.data.params == {"lr": "0.001", "model.dim": "32"}
    assert kept.info.status == "FINISHED"
    assert len(tracker.client.get_metric_history(run.id, "loss")) == 1200


def test_a_run_that_raises_is_marked_failed(tracker: Tracker) -> None:
    with pytest.raises(ZeroDivisionError), tracker.run("two", {}) as run:
        _ = 1 / 0
    assert tracker.client.get_run(run.id).info.status == "FAILED"


def test_aliases_move_between_versions(tracker: Tracker, tmp_path: Path) -> None:
    assert tracker.alias("toy", "champion") is None
    for version in ("aaa", "bbb"):
        tracker.register("toy", tmp_path / version, version)
    tracker.set_alias("toy", "champion", "aaa")
    tracker.set_alias("toy", "candidate", "bbb")
    assert tracker.alias("toy", "champion") == ("aaa", tmp_path / "aaa")
    tracker.set_alias("toy", "champion", "bbb")
    assert tracker.alias("toy", "champion") == ("bbb", tmp_path / "bbb")
    with pytest.raises(TrackingError, match="ccc is not registered"):
        tracker.set_alias("toy", "champion", "ccc")
