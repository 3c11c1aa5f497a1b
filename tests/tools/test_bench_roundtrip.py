"""`ratchet bench roundtrip`, two seconds of a whole robot: it asks, it is answered, it is counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_helpers import figures, serve_as

from tests.tiny_policy import SIZE, Policies
from tools.bench import roundtrip
from tools.sim import SimRobot


@pytest.mark.slow
def test_two_seconds_of_a_robot_that_asks_in_every_tick(
    policies: Policies, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roundtrip, "CAMERA_SIZE", (SIZE, SIZE))
    monkeypatch.setattr(SimRobot, "stop", SimRobot.kill)  # letting the arm down takes ten seconds more
    serve_as(policies, short_dir / f"act-full-{SIZE}x{SIZE}")
    arguments = ("--seconds", 2, "--threads", 1, "--priority", 0)
    found = figures(roundtrip.command, *arguments, "--bundles", short_dir, "--dir", short_dir)
    assert found["seconds"] >= 2.0
    assert found["cameras"] == f"2 x {SIZE}x{SIZE}"
    assert (found["inference_threads"], found["priority"]) == (1, 0)
    assert found["ticks"] > 0
    assert 0 < found["requests"] <= found["ticks"] + found["missed"] + 1, "one at most in a tick"
    assert 0 < found["round_trip_ms_p50"] <= found["round_trip_ms_p99"] <= found["round_trip_ms_max"]
    assert 0 < found["exec_ms_p50"] <= found["exec_ms_p99"] < found["round_trip_ms_max"]
    assert 0 < found["fresh_share"] <= 1
    assert 0 <= found["shared_share"] <= 1
    assert found["held"] == (found["round_trip_ms_p99"] < found["budget"]["round_trip_ms_p99"])
