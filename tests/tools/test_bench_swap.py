"""`ratchet bench swap`, two swaps of it: every request is answered, every bad bundle stays out."""

from __future__ import annotations

from pathlib import Path

from bench_helpers import figures, serve_as

from tests.tiny_policy import SIZE, Policies
from tools.bench.swap import command
from tools.bench.swap_bundles import DAMAGES


def test_swaps_lose_no_request_and_bad_bundles_are_refused(policies: Policies, short_dir: Path) -> None:
    for root in (short_dir, short_dir / "small"):
        serve_as(policies, root)
    few = ("--swaps", 2, "--load-every", 1, "--quiet-s", 0.5, "--size", SIZE, "--isolation", "thread")
    found = figures(command, *few, "--folder", short_dir)
    assert found["failed_requests"] == 0
    assert found["missed_ticks"] >= 0
    assert found["swap_ms_p50"] > 0
    assert found["worst_gap_ms"] >= found["swaps"]["gap_ms"]["p99"] - 0.01
    assert found["rss_growth_mb"] == 0.0, "nothing is said of so few samples"
    assert found["rss_mb"] > 0
    assert found["fresh_loads"] == 2
    assert set(found["refused"]) == {*DAMAGES, "wrong_robot", "wrong_shape", "nan"}
    assert all(found["refused"].values()), "each with its reason"
    assert found["held"]["failed_requests"]
    assert found["held"]["refusals"]
    assert found["quiet"]["answers"] > 0
    assert found["shadow"] is None, "it needs a process of its own"
