"""`ratchet bench hostile`, two hundred requests of it: an honest client is answered all the while."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_helpers import figures

from policies.config import CameraShape
from policies.keys import KeyPair, write_public
from tests.policy_server import tiny
from tools.bench import hostile
from tools.bench.act_bundle import Served
from tools.commands.bench import BENCHES
from tools.hostile.connections import CONNECTIONS
from tools.hostile.messages import MESSAGES

CAMERAS = tuple(CameraShape(name=name, height=96, width=96) for name in ("front", "wrist"))


def test_the_shares_make_a_whole() -> None:
    assert "hostile" in BENCHES
    assert sum(share for _, share in MESSAGES.values()) == pytest.approx(1.0)
    assert sum(share for _, share in CONNECTIONS.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("tls", [False, True])
def test_honest_requests_are_answered_among_hostile_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tls: bool
) -> None:
    key = KeyPair.generate()
    write_public(key.public, tmp_path / "trust")
    bundle = tiny.make_bundle(tmp_path / "bundle", key, cameras=CAMERAS)
    monkeypatch.setattr(hostile, "export_untrained", lambda *_: Served(bundle.path, tmp_path / "trust"))
    monkeypatch.setattr(hostile, "SETTLE_S", 0.2)
    found = figures(hostile.command, "--requests", 100, *(["--tls"] if tls else []))
    assert found["tls"] is tls
    assert found["strangers_let_in"] == 0
    if tls:  # one of them is told what its role does not include, the other one nothing
        assert found["statuses"]["PERMISSION_DENIED"] > 10
        assert found["statuses"]["SHUT_OUT"] > 30
    assert found["serving"]
    assert found["honest_requests"] >= 2
    assert (found["honest_failed"], found["honest_failures"]) == (0, [])
    assert 0 < found["honest_ms_p50"] <= found["honest_ms_p99"] <= found["honest_ms_max"]
    assert found["tracebacks"] == 0
    assert found["requests"] == sum(found["kinds"].values()) == 100
    assert set(found["kinds"]) <= {*MESSAGES, *CONNECTIONS, "slow_reader", "half_stream"}
    calls = found["requests"] - sum(found["kinds"].get(kind, 0) for kind in CONNECTIONS)
    assert sum(found["statuses"].values()) == calls, "every call and stream got a status"
