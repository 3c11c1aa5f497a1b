"""A policy server is killed while its policy drives: the robot's own goes on, then gives way again."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from episodes.store import EpisodeStore
from hal.bench.control import BenchClient
from runtime.loop_stats import tick_reader
from runtime.nouns import Source
from runtime.remote.client import Control, RobotClient
from tests.tiny_policy import SIZE, Policies
from tools.children import Child
from tools.faults.processes import kill, processes
from tools.faults.scene import PATIENCE_S, POLL_S, until
from tools.sim import SimRobot, SimSettings, start_sim

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture
def sim(policies: Policies) -> Iterator[SimRobot]:
    folder = Path(tempfile.mkdtemp(prefix="ratchet-"))  # short: a unix socket's path has at most 107 bytes
    settings = SimSettings(
        bundle=policies.first.path,
        fallback=policies.second.path,
        trust=policies.trust,
        size=(SIZE, SIZE),
        prerendered=True,
    )
    with start_sim(folder, settings) as running:
        yield running
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def robot(sim: SimRobot) -> AsyncIterator[RobotClient]:
    async with sim.client() as client:
        yield client


async def drive(robot: RobotClient, control: Control, bench: BenchClient) -> None:
    """Let the policy drive, recorded."""
    bench.reset(0)
    await control.enable()
    await control.set_mode("policy")
    await control.start_episode("through a dead server")


async def test_the_arm_goes_on_with_the_robots_own_policy_and_back(
    sim: SimRobot, robot: RobotClient, policies: Policies
) -> None:
    remote, local = policies.first.version, policies.second.version

    async def until_driven_by(version: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while (await robot.state()).policy != version:  # noqa: ASYNC110 (its state is over there)
                await asyncio.sleep(POLL_S)

    log = sim.paths.run_dir / "run" / "fallback.log"
    await until(lambda: log.exists() and "server.listening" in log.read_text(), "the fallback is warm")
    ticks = tick_reader(sim.paths.run_dir / "run")
    async with robot.control("test") as control:
        await drive(robot, control, sim.bench)
        await until(lambda: ticks.since(ticks.head - 2)[1]["chunk_tick"].max() >= 0, "chunks are played")
        begin = ticks.head - 1
        (server,) = processes("policy_server", sim.policy_address)
        kill(server)
        await until_driven_by(local)
        again = Child(
            "policy server",
            ["policy_server", "--address", sim.policy_address, "--bundle", str(policies.first.path),
             "--trust", str(policies.trust), "--die-with-parent"],
            sim.paths.run_dir / "again.log",
        )  # fmt: skip
        try:
            await until_driven_by(remote)
            state = await robot.state()
            assert state.mode == "policy", state.reason
            kinds = [flag.kind for flag in state.recent_flags]
            assert kinds.index("policy_fallback") < kinds.index("policy_return")
            _, rows = ticks.since(begin)
            assert (rows["source"] == Source.POLICY).all(), "not one tick was held"
            episode = await control.end_episode("unknown", "test")
            await control.set_mode("hold")
        finally:
            again.stop()
    with EpisodeStore.open(sim.store_path, create=False, mode="r") as store:
        await until(lambda: episode.id in store.ids(), "the episode is published")
        flags = store.read(episode.id).flags
    fallen = next(flag for flag in flags if flag.kind == "policy_fallback")
    assert fallen.evidence["from_version"] == remote
    assert sim.policy_address in fallen.evidence["reason"]
