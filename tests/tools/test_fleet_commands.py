"""`ratchet fleet` against a robot on a real broker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tools.acting import call, call_json
from tools.errors import UsageError
from tools.sim import SimRobot

pytestmark = pytest.mark.slow


@pytest.fixture
def reach(sim: SimRobot, broker: str | None) -> list[str]:
    if broker is None:
        pytest.skip("no mosquitto binary here (apt-get install mosquitto)")
    return ["--broker", broker, "--site", "sim", "--keys", str(sim.paths.run_dir / "keys")]


def test_a_signed_command_is_carried_out_and_answered(sim: SimRobot, reach: list[str]) -> None:
    reply = call_json("fleet", "send", "tester", "status", *reach, "--json")
    assert reply["state"] == "SUCCEEDED"
    assert reply["result"]["mode"] in ("off", "ready", "hold")
    stopped = call("fleet", "send", "tester", "stop", "reason=lunch", *reach)
    assert stopped.exit_code == 0
    state = call_json("status", "--dir", sim.paths.run_dir, "--json")
    assert state["mode"] == "off"


def test_a_strangers_command_is_rejected(reach: list[str], tmp_path: Path) -> None:
    result = call("fleet", "send", "tester", "ping", *reach[:4], "--keys", tmp_path / "keys")
    assert result.exit_code == 1
    assert "REJECTED" in result.stdout


def test_who_is_there_is_seen(reach: list[str]) -> None:
    result = call("fleet", "watch", *reach[:4], "--seconds", "1.5", "--json")
    assert result.exit_code == 0
    seen = [json.loads(line) for line in result.stdout.splitlines()]
    assert ("tester", "ONLINE") in {(row["robot"], row["state"]) for row in seen}


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    keys = ["--keys", str(tmp_path / "keys")]
    for arguments, says in (
        (["tester", "ping", "--broker", "nowhere"], "HOST:PORT"),
        (["tester", "ping", "--broker", "192.0.2.1:1883"], "--tls"),
        (["tester", "stop", "lunch"], "NAME=VALUE"),
    ):
        error = call("fleet", "send", *arguments, *keys).exception
        assert isinstance(error, UsageError)
        assert says in str(error)
