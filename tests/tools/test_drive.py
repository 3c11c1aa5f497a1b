"""The verbs that drive and look at a running robot, as typed at a shell."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

from runtime.remote.client import RobotCallError
from runtime.remote.errors import RemoteError
from tests.tools.acting import call, call_json, driving
from tools.errors import UsageError
from tools.sim import SimRobot

pytestmark = pytest.mark.slow


def mode(sim: SimRobot) -> str:
    return str(call_json("status", "--dir", sim.paths.run_dir, "--json")["mode"])


def test_status_shows_joints_and_figures(sim: SimRobot) -> None:
    state = call_json("status", "--dir", sim.paths.run_dir, "--json")
    assert state["robot"] == "tester"
    assert len(state["position"]) == len(state["joints"]) == 6
    assert int(state["loop"]["ticks"]) > 0
    text = call("status", "--address", sim.address).stdout
    assert "shoulder_pan" in text
    assert "period" in text


def test_teleop_ends_by_itself_and_lets_the_arm_down(sim: SimRobot) -> None:
    result = call("teleop", "--dir", sim.paths.run_dir, "--seconds", "0.6")
    assert result.exit_code == 0, result.exception
    assert re.search(r"leader to follower \d+ Hz, latency p50 [\d.]+ ms p99 [\d.]+ ms", result.output)
    state = call_json("status", "--dir", sim.paths.run_dir, "--json")
    assert (state["mode"], state["lease_holder"]) == ("off", "")
    assert "teleop ended" in state["reason"]


def test_an_emergency_stop_needs_no_lease_and_a_person_clears_it(sim: SimRobot) -> None:
    async def while_somebody_drives() -> None:
        async with driving(sim, "teleop"):
            await asyncio.to_thread(call, "stop", "--emergency", "--dir", sim.paths.run_dir)

    asyncio.run(while_somebody_drives())
    assert mode(sim) == "estop"
    refused = call("teleop", "--dir", sim.paths.run_dir, "--seconds", "0.2")
    assert isinstance(refused.exception, RobotCallError)
    assert call("stop", "--clear-emergency", "--dir", sim.paths.run_dir).exit_code == 0
    assert mode(sim) == "off"


def test_only_one_drives_at_a_time(sim: SimRobot) -> None:
    async def while_somebody_drives() -> object:
        async with driving(sim, "teleop"):
            result = await asyncio.to_thread(call, "status", "--dir", sim.paths.run_dir, "--json")
            assert json.loads(result.stdout)["lease_holder"] == "test"
            async with sim.client() as robot:
                with pytest.raises(RobotCallError, match="control is held by test"):
                    async with robot.control("another"):
                        pass
            return None

    asyncio.run(while_somebody_drives())


def test_without_a_policy_the_arm_stays_where_it_is(sim: SimRobot) -> None:
    result = call("run", "--dir", sim.paths.run_dir, "--bundle", "no-such-version", "--seconds", "0.3")
    assert isinstance(result.exception, RemoteError)
    assert mode(sim) in ("off", "hold", "ready")


def test_no_robot_is_one_line() -> None:
    result = call("status", "--address", "unix:/tmp/ratchet-no-such.sock")
    assert isinstance(result.exception, RemoteError)
    assert "ratchet up" in str(result.exception)


def test_two_names_for_a_robot_are_one_too_many(sim: SimRobot) -> None:
    result = call("status", "--address", sim.address, "--dir", sim.paths.run_dir)
    assert isinstance(result.exception, UsageError)
