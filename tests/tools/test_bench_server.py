"""`ratchet bench server`, a second of it: what each client got adds up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bench_helpers import figures

from policies.config import FULL_CAMERAS
from policies.keys import KeyPair, write_public
from tests.policy_server import tiny
from tools.bench import server


def check(fleet: dict[str, Any], clients: int, seconds: float) -> None:
    assert len(fleet["answers"]) == clients
    assert len(fleet["client_p50_ms"]) == len(fleet["client_p99_ms"]) == clients
    assert all(answers > 0 for answers in fleet["answers"])
    assert fleet["throughput"] == pytest.approx(sum(fleet["answers"]) / seconds, abs=0.01)
    assert sum(fleet["batch_sizes"].values()) == sum(fleet["answers"])
    assert fleet["failed"] == 0
    assert fleet["dropped"] >= 0
    assert 0 < fleet["p50_ms"] <= fleet["p99_ms"]
    assert fleet["shared"] == clients, "on one host pictures travel in shared memory"


def test_a_second_of_one_client_and_of_four_adds_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = 5
    monkeypatch.setitem(server._ROUNDS, "tiny", rounds)
    key = KeyPair.generate()
    write_public(key.public, tmp_path / "tiny" / "trust")
    tiny.make_bundle(tmp_path / "tiny" / "bundle", key, cameras=FULL_CAMERAS)
    found = figures(
        server.command, "--clients", "1", "--seconds", 1, "--policy", "tiny", "--bundles", tmp_path
    )
    policy = found["tiny"]
    check(policy["clients"]["1"], 1, 1.0)
    assert policy["clients"]["1"]["fairness"] == 1.0
    check(policy["greedy"], 4, 1.0)
    over = policy["overhead"]
    assert over["rounds"] == rounds
    for way in ("shared", "stream", "message", "pickled"):
        name = "overhead_ms" if way == "shared" else f"{way}_overhead_ms"
        assert found[name] == over[name]
        assert over[name] == pytest.approx(over[f"{way}_ms_p50"] - over["bare_ms_p50"], abs=1e-3)
    assert found["dropped"] == policy["clients"]["1"]["dropped"]
