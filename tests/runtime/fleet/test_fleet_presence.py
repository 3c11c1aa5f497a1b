"""Who is there: birth, reports, goodbye, and what the broker says of the dead."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiomqtt
import msgspec
from fleet_helpers import TOPICS, RobotProcess, listening, running, statuses

from runtime.fleet.agent import FleetAgent
from runtime.fleet.client import Presence, watch_presence
from runtime.fleet.config import FleetConfig
from runtime.fleet.envelope import encode
from tests.runtime.memory_facade import MemoryFacade
from tests.runtime.waiting import eventually


async def test_birth_state_telemetry_and_goodbye(config: FleetConfig, facade: MemoryFacade) -> None:
    async with listening(config, f"{TOPICS.root}/#") as heard:
        agent = FleetAgent(config, "lab", "koch", facade, software="1.2.3", lease_holder=lambda: "anna")
        async with running(agent):
            await eventually(lambda: len([m for m in heard if str(m.topic) == TOPICS.summary]) >= 2)
            facade.mode = "policy"
            states = lambda: [msgspec.json.decode(m.payload) for m in heard if str(m.topic) == TOPICS.state]  # noqa: E731
            await eventually(lambda: states()[-1]["mode"] == "policy")
            assert len(states()) == 2, "a snapshot on change, not on every poll"
            await agent.event("intervention", by="anna")
            await eventually(lambda: any(str(m.topic) == TOPICS.event for m in heard))
        await eventually(lambda: ("OFFLINE", 1) in statuses(heard))
    assert statuses(heard) == [("ONLINE", 1), ("OFFLINE", 1)]
    assert states()[0]["lease_holder"] == "anna"
    summary = next(msgspec.json.decode(m.payload) for m in heard if str(m.topic) == TOPICS.summary)
    assert summary["position"][0] == -1.0
    assert summary["loop"]["period_ms_p50"] == 33.3
    async with listening(config, f"{TOPICS.root}/#") as late:
        await eventually(lambda: len(late) >= 3)
        await asyncio.sleep(0.1)
    assert {str(m.topic) for m in late} == {TOPICS.status, TOPICS.factsheet, TOPICS.state}
    assert all(m.retain for m in late)
    factsheet = next(msgspec.json.decode(m.payload) for m in late if str(m.topic) == TOPICS.factsheet)
    assert factsheet["operations"]["set_policy"] == "deploy"
    assert len(factsheet["joints"]) == 6


async def test_a_killed_robot_is_lost_under_its_own_session(config: FleetConfig, tmp_path: Path) -> None:
    seen: list[Presence] = []

    async def watch() -> None:
        async for presence in watch_presence(config, "lab"):
            seen.append(presence)

    watcher = asyncio.create_task(watch())
    for session in (1, 2):
        robot = RobotProcess(config, tmp_path)
        try:
            await eventually(
                lambda n=session: ("ONLINE", n) in [(p.status.state, p.status.session) for p in seen]
            )
        finally:
            robot.kill()
        await eventually(lambda n=session: ("LOST", n) in [(p.status.state, p.status.session) for p in seen])
    watcher.cancel()
    async with listening(config, TOPICS.status) as late:
        await eventually(lambda: late)
    assert statuses(late) == [("LOST", 2)]
    assert late[0].retain


async def test_a_late_will_of_an_earlier_session_is_not_believed(config: FleetConfig) -> None:
    seen: list[Presence] = []

    async def watch() -> None:
        async for presence in watch_presence(config, "lab"):
            seen.append(presence)

    async with aiomqtt.Client(config.host, config.port) as client:
        for state, session in (("ONLINE", 4), ("ONLINE", 5)):
            await client.publish(
                TOPICS.status, encode({"state": state, "session": session}), qos=1, retain=True
            )
        watcher = asyncio.create_task(watch())
        await eventually(lambda: seen)
        for state, session in (("LOST", 4), ("LOST", 5)):
            await client.publish(
                TOPICS.status, encode({"state": state, "session": session}), qos=1, retain=True
            )
        await eventually(lambda: len(seen) == 2)
    watcher.cancel()
    assert [(p.status.state, p.status.session) for p in seen] == [("ONLINE", 5), ("LOST", 5)]
