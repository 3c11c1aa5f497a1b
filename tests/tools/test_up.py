"""`ratchet up --sim`, as its user has it: real processes, real buses, gRPC over a unix socket.

What is done to it while it works is in tests/faults, what it is started with in tests/test_bad_input.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from episodes.store import EpisodeStore
from runtime.nouns import Source
from runtime.remote.client import RobotCallError, RobotClient
from tests.tiny_policy import Policies
from tests.tools.acting import TIMEOUT_S, driving, ratchet, until_mode
from tools.errors import UsageError
from tools.sim import SimRobot, start_sim

pytestmark = pytest.mark.slow


async def published(store: Path, episode: str) -> EpisodeStore:
    """The store, open for reading, once ``episode`` is in its catalogue."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        opened = EpisodeStore.open(store, create=False, mode="r")
        if episode in opened.ids():
            return opened
        opened.close()
        assert time.monotonic() < deadline, f"{episode} is not published"
        await asyncio.sleep(0.05)


async def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"not in {TIMEOUT_S:g} s: {what}"
        await asyncio.sleep(0.05)


async def test_the_follower_does_what_the_leader_shows_and_the_episode_holds_it(sim: SimRobot) -> None:
    async with driving(sim, "teleop") as (_, control):
        sim.bench.reset(3)
        started = await control.start_episode("put the cube in the zone")
        sim.bench.demonstrate(3)
        await eventually(lambda: not sim.bench.task().demonstrating, "the demonstration is over")
        await asyncio.sleep(0.3)
        task = sim.bench.task()
        ended = await control.end_episode("success", "shown")
    assert task.success
    assert ended.id == started.id
    assert ended.end_ms < 50.0
    with await published(sim.store_path, ended.id) as store:
        episode = store.read(ended.id)
        assert (episode.meta.kind, episode.meta.outcome) == ("demo", "success")
        action, asked = episode.streams["action"].values, episode.streams["action.asked"].values
        state = episode.streams["observation.state"].values
        assert len(action) == len(state) == len(episode.streams["tick.source"].values)
        assert abs(len(action) - ended.frames) <= 1
        assert set(episode.streams["tick.source"].values.tolist()) == {int(Source.TELEOP)}
        assert np.ptp(state, axis=0).max() > 0.5
        assert np.abs(action - asked).max() > 0.0, "the guard's goal stands beside what was asked"
        rate = len(episode.streams["bus.position"].values) / len(action)
        assert 4.0 < rate < 12.0, "the bus is recorded at its own rate"
        for camera in ("front", "wrist"):
            frames = episode.frames(camera)
            assert len(frames) > 0.5 * len(action)
            assert np.all(np.diff(frames.seq) > 0)
            assert frames[0].shape == (32, 32, 3)


async def test_an_emergency_stop_latches_until_it_is_cleared(sim: SimRobot) -> None:
    async with driving(sim, "teleop") as (robot, control):
        sim.bench.demonstrate(1)
        await asyncio.sleep(0.5)
        await robot.estop("test")
        state = await robot.state()
        assert (state.mode, state.reason) == ("estop", "test")
        await asyncio.sleep(0.3)
        goal = list((await robot.state()).goal)
        await asyncio.sleep(0.3)
        assert list((await robot.state()).goal) == goal, "nothing moves"
        for motion in (control.enable(), control.set_mode("teleop")):
            with pytest.raises(RobotCallError, match="clear the e-stop"):
                await motion
        await control.clear_estop()
        assert (await robot.state()).mode == "off", "clearing does not energise"
        await control.enable()
        assert (await robot.state()).mode == "ready"
        sim.bench.stop_demonstration()


async def eventually_policy(robot: RobotClient, version: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while (state := await robot.state()).policy != version:
        assert state.mode == "policy", state.reason
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_a_policy_drives_and_is_swapped_while_it_does(sim: SimRobot, policies: Policies) -> None:
    async with driving(sim, "policy") as (robot, control):
        await eventually_policy(robot, policies.first.version)
        await asyncio.sleep(2.0)
        before = await robot.state()
        assert before.mode == "policy"
        assert before.loop.inference_ms_p50 > 0.0
        assert await control.set_policy(str(policies.second.path)) == policies.second.version
        await eventually_policy(robot, policies.second.version)
        assert await control.set_policy(policies.first.version) == policies.first.version
        await eventually_policy(robot, policies.first.version)
        after = await robot.state()
        assert after.mode == "policy", after.reason
        # A swap costs no tick; a machine that is busy otherwise may.
        assert after.loop.missed - before.loop.missed <= 0.05 * (after.loop.ticks - before.loop.ticks)
        with pytest.raises(RobotCallError, match="SetPolicy"):
            await control.set_policy(str(policies.root / "absent"))
        assert (await robot.state()).policy == policies.first.version


async def test_a_person_takes_over_a_policys_episode_and_hands_back(sim: SimRobot) -> None:
    async with driving(sim, "policy") as (_, control):
        started = await control.start_episode("hold still")
        await asyncio.sleep(0.6)
        await control.set_mode("teleop")
        await asyncio.sleep(0.6)
        await control.set_mode("policy")
        await asyncio.sleep(0.6)
        await control.end_episode("failure", "test")
    with await published(sim.store_path, started.id) as store:
        episode = store.read(started.id)
        assert episode.meta.kind == "rollout"
        (taken,) = episode.interventions
        source = episode.streams["tick.source"]
        person = source.t_ns[source.values == int(Source.INTERVENTION)]
        assert len(person) > 5
        assert taken.start_ns <= person[0]
        assert person[-1] <= taken.end_ns
        outside = (source.t_ns < taken.start_ns) | (source.t_ns > taken.end_ns)
        assert int(Source.INTERVENTION) not in source.values[outside]
        assert int(Source.POLICY) in source.values[outside]


async def test_a_silent_leader_means_hold(sim: SimRobot) -> None:
    async with driving(sim, "teleop") as (robot, control):
        sim.bench.bus_fault("leader", disconnect=True)
        try:
            state = await until_mode(robot, "hold")
            assert "leader" in state.reason
        finally:
            sim.bench.bus_fault("leader")
        await asyncio.sleep(1.0)
        assert (await robot.state()).mode == "hold", "a leader that comes back moves nothing by itself"
        await control.enable()
        assert (await robot.state()).mode == "ready"
        await control.set_mode("teleop")
        # Not on to where the leader is: the cube of an earlier test may be in the way.
        await asyncio.sleep(0.2)
        state = await robot.state()
        assert state.mode == "teleop", state.reason


async def test_a_second_service_disturbs_nothing(sim: SimRobot) -> None:
    before = sim.bench.info().pid
    with pytest.raises(UsageError, match="already runs"):
        await asyncio.to_thread(start_sim, sim.paths.run_dir)
    assert sim.bench.info().pid == before
    async with sim.client() as robot:
        assert (await robot.state()).robot == "tester"


def test_a_run_directory_in_use_is_named(sim: SimRobot) -> None:
    status, error = ratchet("up", "--config", sim.config_path)
    assert status == 2
    assert "already runs" in error


def test_a_store_in_use_is_named(sim: SimRobot, tmp_path: Path) -> None:
    config = tmp_path / "ratchet.toml"
    lines = sim.config_path.read_text().replace(f"{sim.paths.run_dir}/run", f"{tmp_path}/run")
    config.write_text(lines)
    status, error = ratchet("up", "--config", config)
    assert status == 2
    assert "is being written by process" in error
