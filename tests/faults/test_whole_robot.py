"""Faults done to a whole robot while it works: what the arm does, what comes back by itself, what does not.

Real processes, the real drivers, the bench's physics. Parts alone are broken in the tests of
their own folders: every write of the store in tests/episodes, the bus process and the fleet agent
in tests/runtime, the leader arm in tests/tools/test_up.py.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal

import numpy as np
import pytest

from episodes.store import EpisodeStore
from runtime.fleet.client import RobotStatus, watch_presence
from runtime.fleet.config import FleetConfig
from runtime.remote.client import RobotCallError
from tests.faults.rig import NAME, TIMEOUT_S, Pace, Rig, drives, goals, positions, record, until, until_seen
from tests.tools.acting import driving, processes, ratchet, until_mode

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

STILL = 0.06  # rad: held where it was found, the arm sags a little under its weight


async def test_a_bus_process_killed_in_motion_leaves_the_arm_where_it_is(rig: Rig) -> None:
    def bus_process() -> list[int]:
        return processes("runtime.bus_process", str(rig.sim.paths.run_dir), "follower.config")

    async with driving(rig.sim, "teleop") as (robot, control):
        rig.sim.bench.reset(3)
        rig.sim.bench.demonstrate(3)

        async def moving() -> bool:
            return bool(np.abs((await robot.state()).velocity).max() > 0.2)

        await until_seen(moving, "the arm moves")
        (victim,) = bus_process()
        os.kill(victim, signal.SIGKILL)
        state = await until_mode(robot, "fault")
        assert state.reason
        await until(lambda: bus_process() not in ([], [victim]), "another bus process")
        cycles = (await robot.state()).loop.bus_cycles

        async def reads() -> bool:
            return bool((await robot.state()).loop.bus_cycles not in (cycles, 0))

        await until_seen(reads, "it reads the arm again")
        assert rig.sim.bench.task().demonstrating, "the leader goes on; nobody follows"
        seen = await positions(robot, 2.0)
        assert np.ptp(seen, axis=0).max() < STILL
        assert (await robot.state()).mode == "fault", "nobody enabled it"
        with pytest.raises(RobotCallError):
            await control.set_mode("teleop")

        rig.sim.bench.stop_demonstration()
        await control.enable()
        assert (await robot.state()).mode == "ready"
        await control.set_mode("teleop")
        rig.sim.bench.demonstrate(4)
        await until_seen(moving, "it follows again")
        rig.sim.bench.stop_demonstration()


async def test_a_fifth_of_all_replies_lost_is_flagged_and_no_fault(rig: Rig) -> None:
    async with driving(rig.sim, "teleop") as (robot, control):
        started = await control.start_episode("through a bad cable")
        lost = (await robot.state()).loop.bus_lost
        rig.sim.bench.bus_fault("follower", drop=0.2)
        try:
            await asyncio.sleep(1.0)
        finally:
            rig.sim.bench.bus_fault("follower")
        await asyncio.sleep(0.3)
        state = await robot.state()
        assert state.mode == "teleop", state.reason
        assert state.loop.bus_lost > lost + 10
        assert "lost_replies" in {flag.kind for flag in state.recent_flags}
        await control.end_episode("unknown", "test")
        await until(lambda: started.id in rig.digests(), "the episode is published")
    with EpisodeStore.open(rig.sim.store_path, create=False, mode="r") as store:
        flags = store.read(started.id).flags
    (flag,) = [flag for flag in flags if flag.kind == "lost_replies"]
    assert flag.evidence["lost"] > 0


@pytest.mark.parametrize("mode", ["gone", "freeze"])
async def test_a_policy_that_sees_nothing_new_holds(rig: Rig, mode: str) -> None:
    """A frozen picture is as bad as none: it shows where the cube was."""
    async with driving(rig.sim, "policy") as (robot, _):
        await until_seen(lambda: drives(robot), "the policy drives")
        async with Pace(robot):
            rig.sim.bench.camera_fault("front", mode)
            try:
                await until(lambda: "front" in rig.health()["camera.front"]["detail"], "health says which")
                assert not rig.health()["camera.front"]["ok"]
                assert rig.health()["camera.wrist"]["ok"]
                await asyncio.sleep(2.0)  # the last chunk is finished, then nothing is asked any more
                assert not await drives(robot)
                assert (await robot.state()).mode == "policy"
            finally:
                rig.sim.bench.camera_fault("front", "ok")
        await until(lambda: rig.health()["camera.front"]["ok"], "the camera is well again")
        await until_seen(lambda: drives(robot), "the policy drives again")


async def test_without_a_picture_nothing_is_recorded(rig: Rig) -> None:
    known = rig.digests()
    rig.sim.bench.camera_fault("wrist", "gone")
    try:
        await until(lambda: not rig.health()["camera.wrist"]["ok"], "the camera is gone")
        code, error = await asyncio.to_thread(
            ratchet, "record", "--dir", rig.sim.paths.run_dir, "--task", "x", "--episode-seconds", "1"
        )
    finally:
        rig.sim.bench.camera_fault("wrist", "ok")
    assert code == 2
    (line,) = error.strip().splitlines()
    assert line.startswith("ratchet: ")
    assert "camera wrist gives no fresh picture; check its cable" in line
    assert rig.digests() == known
    await until(lambda: rig.health()["camera.wrist"]["ok"], "the camera is well again")


async def test_a_full_disk_ends_the_recording_and_not_the_control(rig: Rig) -> None:
    """A limit on the size of the service's files stands in for a full disk: the same calls fail."""
    pid = rig.sim.process.process.pid
    unlimited = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    log = rig.sim.log.stat().st_size
    async with driving(rig.sim, "policy") as (robot, control):
        started = await control.start_episode("more than fits")
        async with Pace(robot):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (log + 65_536, unlimited[1]))
            try:

                async def stopped() -> bool:
                    return not (await robot.state()).episode

                await until_seen(stopped, "the recording ends")
            finally:
                resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)
            state = await robot.state()
            assert state.mode == "policy"
            assert "space" in state.reason
            assert "\n" not in state.reason
            await until(lambda: not rig.health()["store"]["ok"], "the health page says so")
            assert await drives(robot)
        with pytest.raises(RobotCallError, match="no episode is running"):
            await control.end_episode("success", "test")
        assert started.id not in rig.digests()
        await record(rig, control)  # somebody made room: the next one is kept
        await until(lambda: rig.health()["store"]["ok"], "the store is well again")


async def test_a_killed_policy_server_is_outlived(rig: Rig) -> None:
    async with driving(rig.sim, "policy") as (robot, control):
        await until_seen(lambda: drives(robot), "the policy drives")
        async with Pace(robot):
            (server,) = processes("policy_server", rig.sim.policy_address)
            os.kill(server, signal.SIGKILL)
            await asyncio.sleep(2.5)  # the last chunk is finished, then nothing answers any more
            held = await goals(robot)
            assert np.ptp(held, axis=0).max() < 1e-6
            assert (await robot.state()).mode == "policy"
        await control.set_mode("hold")
        with pytest.raises(RobotCallError, match="policy server"):
            await control.set_mode("policy")
        await asyncio.to_thread(rig.start_policy_server)

        async def accepted() -> bool:
            try:
                await control.set_mode("policy")
            except RobotCallError:  # a moment may pass until the connection is tried again
                return False
            return True

        await until_seen(accepted, "the server is found again")
        await until_seen(lambda: drives(robot), "the policy drives again")
        await control.set_mode("hold")


async def presence(rig: Rig) -> RobotStatus:
    """The robot's retained status at the broker, as a watcher who comes now is told it."""
    assert rig.broker is not None
    config = FleetConfig(port=rig.broker.port, plaintext=True)
    async with asyncio.timeout(TIMEOUT_S):
        async for seen in watch_presence(config, "sim"):
            if seen.robot == NAME:
                return seen.status
    raise AssertionError("the broker went away")


@pytest.fixture
def broker_needed(rig: Rig) -> None:
    if rig.broker is None:
        pytest.skip("no mosquitto binary here (apt-get install mosquitto)")


@pytest.mark.usefixtures("broker_needed")
async def test_a_killed_broker_is_not_missed_and_found_again(rig: Rig) -> None:
    assert rig.broker is not None
    assert (await presence(rig)).state == "ONLINE"
    async with driving(rig.sim, "teleop") as (robot, _):
        async with Pace(robot):
            rig.broker.kill()
            await asyncio.sleep(1.0)
        rig.broker.start()  # it was killed: nothing retained is left unless the agent says it again
        assert (await presence(rig)).state == "ONLINE"
        assert (await robot.state()).mode == "teleop"


async def test_a_killed_service_stops_the_arm_and_keeps_the_episode(rig: Rig) -> None:
    """Like a power cut while it records; started again in the same place. Last, since it ends everything."""
    known = set(rig.digests())
    async with driving(rig.sim, "teleop") as (_, control):
        started = await control.start_episode("cut short")
        rig.sim.bench.demonstrate(5)
        await asyncio.sleep(1.5)
        rig.sim.kill()
    if rig.broker is not None:

        async def lost() -> bool:
            return (await presence(rig)).state == "LOST"

        await until_seen(lost, "the fleet is told")
    await until(lambda: not rig.processes(), "no process is left: the motors' own watchdog has stopped them")
    assert set(rig.digests()) == known, "nothing half done is published"

    await asyncio.to_thread(rig.start_again)
    with EpisodeStore.open(rig.sim.store_path, create=False, mode="r") as store:
        meta = store.read(started.id).meta
        assert (meta.recovered, meta.outcome) == (True, "unknown")
        assert meta.ticks > 10
        assert store.verify().ok
        # With it come those that a full disk has interrupted before.
        new = set(store.ids()) - known
        assert started.id in new
        assert all(store.read(episode).meta.recovered for episode in new)
    async with rig.sim.client() as robot:
        assert (await robot.state()).mode == "off", "nobody enabled it"
    if rig.broker is not None:
        assert (await presence(rig)).state == "ONLINE"
    assert await asyncio.to_thread(rig.sim.stop) == 0
    assert rig.processes() == []
    assert not rig.sim.paths.ready.exists()
