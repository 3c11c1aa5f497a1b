"""Rows in which a process dies or stands still for half a second."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

from tools.children import Child
from tools.faults.processes import STOP_S, kill, stopped
from tools.faults.row import Row
from tools.faults.scene import Scene, until

Fault = Callable[[Scene], AbstractAsyncContextManager[None]]
Find = Callable[[Scene], list[int]]


def follower_bus(scene: Scene) -> list[int]:
    """The follower's bus process."""
    return scene.rig.bus_processes()


def leader_bus(scene: Scene) -> list[int]:
    """The leader's bus process."""
    return scene.rig.bus_processes("leader")


def cameras(scene: Scene) -> list[int]:
    """The camera process."""
    return scene.rig.camera_processes()


def service(scene: Scene) -> list[int]:
    """The runtime."""
    return [scene.rig.pid]


def policy_server(scene: Scene) -> list[int]:
    """The policy server."""
    assert scene.rig.server is not None
    return [scene.rig.server.process.pid]


def _killed(find: Find) -> Fault:
    """SIGKILL; whoever looks after the process starts another one meanwhile."""

    @contextlib.asynccontextmanager
    async def fault(scene: Scene) -> AsyncIterator[None]:
        (victim,) = find(scene)
        kill(victim)
        yield
        await until(lambda: find(scene) not in ([], [victim]), "another process is started")

    return fault


@contextlib.asynccontextmanager
async def _policy_server_killed(scene: Scene) -> AsyncIterator[None]:
    (victim,) = policy_server(scene)
    kill(victim)
    yield
    await asyncio.to_thread(scene.rig.start_policy_server)  # whoever drives goes on sending heartbeats


@contextlib.asynccontextmanager
async def _broker_gone(scene: Scene) -> AsyncIterator[None]:
    assert scene.rig.broker is not None
    scene.rig.broker.kill()
    yield
    await asyncio.to_thread(scene.rig.broker.start)


def _stopped(find: Find) -> Fault:
    @contextlib.asynccontextmanager
    async def fault(scene: Scene) -> AsyncIterator[None]:
        (pid,) = find(scene)
        async with stopped(pid):
            yield

    return fault


_HOW_STOPPED = f"SIGSTOP, and SIGCONT {STOP_S * 1e3:.0f} ms later"


@contextlib.asynccontextmanager
async def _own_course(_: Scene) -> AsyncIterator[None]:
    yield  # see tools/faults/power_cut.py


@contextlib.asynccontextmanager
async def _learner_killed(scene: Scene) -> AsyncIterator[None]:
    directory = scene.rig.directory
    config, work, keys = directory / "learner.toml", directory / "learnt", directory / "learner-keys"
    lines = {"store": scene.rig.paths.store, "work": work, "keys": keys, "trust": keys}
    config.write_text("".join(f"{key} = {json.dumps(str(value))}\n" for key, value in lines.items()))
    learner = Child("learner", ["tools.cli", "learn", "--config", str(config)], directory / "learner.log")
    await asyncio.to_thread(learner.wait_until, lambda: (work / "tracking").exists())
    async with stopped(learner.process.pid):
        kill(learner.process.pid)
    learner.process.wait()
    yield


ROWS: tuple[Row, ...] = (
    Row(
        name="runtime-killed",
        done="runtime killed, and with it the recorder",
        how="SIGKILL while it records in teleoperation (the recorder is a thread of it), started again",
        fault=_own_course,
        state="watchdog",
        within_s=1.0,
        recovers="start again, enable",
        rig="killed",
    ),
    Row(
        name="learner-killed",
        done="learner stopped for 500 ms, then killed",
        how="SIGSTOP, SIGCONT, SIGKILL of `ratchet learn` on the same machine while a policy drives",
        fault=_learner_killed,
        drive="policy",
        state="moves on",
        within_s=0.0,
        recovers="nothing stops",
        note="a kill in the middle of a round: tests/learner",
    ),
    Row(
        name="bus-process-killed",
        done="bus process killed",
        how="SIGKILL; the service starts it again, the motors' watchdog has stopped the arm",
        fault=_killed(follower_bus),
        state="fault",
        within_s=0.5,
        recovers="enable",
    ),
    Row(
        name="leader-process-killed",
        done="leader's bus process killed",
        how="SIGKILL in teleoperation; the service starts it again",
        fault=_killed(leader_bus),
        state="hold",
        within_s=0.5,
        recovers="enable",
    ),
    Row(
        name="camera-process-killed",
        done="camera process killed",
        how="SIGKILL while a policy drives; the service starts it again",
        fault=_killed(cameras),
        drive="policy",
        state="moves on",
        within_s=3.0,
        recovers="by itself",
        watch_s=3.0,
        pause_s=2.0,
        note="what was planned is finished; without fresh pictures by then the arm stands still",
    ),
    Row(
        name="policy-server-killed",
        done="policy server killed",
        how="SIGKILL while its policy drives; started again as its unit would",
        fault=_policy_server_killed,
        drive="policy",
        state="stands still",
        within_s=3.0,
        recovers="by itself",
        watch_s=2.5,
    ),
    Row(
        name="broker-gone",
        done="broker gone",
        how="SIGKILL of mosquitto, started again afterwards",
        fault=_broker_gone,
        state="moves on",
        within_s=0.0,
        recovers="nothing stops",
    ),
    Row(
        name="bus-process-stopped",
        done="bus process stopped for 500 ms",
        how=f"{_HOW_STOPPED}; the motors' watchdog stops the arm",
        fault=_stopped(follower_bus),
        state="fault",
        within_s=1.0,
        recovers="enable",
    ),
    Row(
        name="leader-process-stopped",
        done="leader's bus process stopped for 500 ms",
        how=f"{_HOW_STOPPED}, in teleoperation",
        fault=_stopped(leader_bus),
        state="hold",
        within_s=0.5,
        recovers="enable",
    ),
    Row(
        name="runtime-stopped",
        done="runtime stopped for 500 ms",
        how=f"{_HOW_STOPPED}; the last waypoint expires and the arm holds meanwhile",
        fault=_stopped(service),
        state="moves on",
        within_s=1.0,
        recovers="nothing stops",
        missed_share=0.3,  # half a second of the two
    ),
    Row(
        name="camera-process-stopped",
        done="camera process stopped for 500 ms",
        how=f"{_HOW_STOPPED}, while a policy drives",
        fault=_stopped(cameras),
        drive="policy",
        state="moves on",
        within_s=1.0,
        recovers="nothing stops",
    ),
    Row(
        name="policy-server-stopped",
        done="policy server stopped for 500 ms",
        how=f"{_HOW_STOPPED}, while its policy drives",
        fault=_stopped(policy_server),
        drive="policy",
        state="moves on",
        within_s=1.0,
        recovers="nothing stops",
    ),
)
