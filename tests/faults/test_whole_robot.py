"""What a person is told, and must still be able to do, while something is broken; beside the fault table.

Parts alone are broken in the tests of their own folders: every write of the store in tests/episodes, the
bus process and the fleet agent in tests/runtime, a learner in the middle of a round in tests/learner.
"""

from __future__ import annotations

import asyncio

import pytest

from episodes.store import EpisodeStore
from runtime.fleet.client import RobotStatus, watch_presence
from runtime.fleet.config import FleetConfig
from runtime.remote.client import RobotCallError
from tests.tools.acting import TIMEOUT_S, ratchet
from tools.faults.process_rows import policy_server
from tools.faults.processes import kill
from tools.faults.rig import NAME, Rig
from tools.faults.scene import driving, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


async def test_lost_replies_are_flagged_in_the_episode(rig: Rig) -> None:
    async with driving(rig, "teleop") as scene:
        started = await scene.control.start_episode("through a bad cable")
        lost = (await scene.robot.state()).loop.bus_lost
        rig.bench.bus_fault("follower", drop=0.2)
        try:
            await asyncio.sleep(1.0)
        finally:
            rig.bench.bus_fault("follower")
        await asyncio.sleep(0.3)
        state = await scene.robot.state()
        assert state.mode == "teleop", state.reason
        assert state.loop.bus_lost > lost + 10
        assert "lost_replies" in {flag.kind for flag in state.recent_flags}
        await scene.control.end_episode("unknown", "test")
        await until(lambda: started.id in rig.digests(), "the episode is published")
    with EpisodeStore.open(rig.paths.store, create=False, mode="r") as store:
        flags = store.read(started.id).flags
    (flag,) = [flag for flag in flags if flag.kind == "lost_replies"]
    assert flag.evidence["lost"] > 0


async def test_without_a_picture_nothing_is_recorded(rig: Rig) -> None:
    known = rig.digests()
    rig.bench.camera_fault("wrist", "gone")
    try:
        await until(lambda: not rig.health()["camera.wrist"]["ok"], "the camera is gone")
        assert rig.health()["camera.front"]["ok"]
        code, error = await asyncio.to_thread(
            ratchet, "record", "--dir", rig.directory, "--task", "x", "--episode-seconds", "1"
        )
    finally:
        rig.bench.camera_fault("wrist", "ok")
    assert code == 2
    (line,) = error.strip().splitlines()
    assert line.startswith("ratchet: ")
    assert "camera wrist gives no fresh picture; check its cable" in line
    assert rig.digests() == known
    await until(lambda: rig.health()["camera.wrist"]["ok"], "the camera is well again")


async def test_without_its_server_a_policy_cannot_be_asked_for(rig: Rig) -> None:
    async with driving(rig, "policy") as scene:
        kill(policy_server(scene)[0])
        await scene.control.set_mode("hold")
        with pytest.raises(RobotCallError, match="policy server"):
            await scene.control.set_mode("policy")
        await asyncio.to_thread(rig.start_policy_server)
        await scene.begin()


async def presence(rig: Rig) -> RobotStatus:
    """The robot's retained status at the broker, as a watcher who comes now is told it."""
    assert rig.broker is not None
    config = FleetConfig(port=rig.broker.port, plaintext=True)
    async with asyncio.timeout(TIMEOUT_S):
        async for seen in watch_presence(config, "sim"):
            if seen.robot == NAME:
                return seen.status
    raise AssertionError("the broker went away")


async def test_a_broker_that_comes_back_is_told_again_who_is_there(rig: Rig) -> None:
    """It was killed: nothing retained is left unless the robot says it again."""
    if rig.broker is None:
        pytest.skip("no mosquitto binary here (apt-get install mosquitto)")
    assert (await presence(rig)).state == "ONLINE"
    rig.broker.kill()
    await asyncio.sleep(0.5)
    await asyncio.to_thread(rig.broker.start)
    assert (await presence(rig)).state == "ONLINE"
