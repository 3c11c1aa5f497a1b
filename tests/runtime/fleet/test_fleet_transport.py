"""The agent on another event loop, over mutual TLS, and cancelled at a bad moment."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
import uvloop
from fleet_helpers import TOPICS, operator, running

from runtime.fleet import transport
from runtime.fleet.agent import FleetAgent
from runtime.fleet.client import FleetError
from runtime.fleet.config import FleetConfig
from tests.runtime.broker import Broker
from tests.runtime.certificates import Authority
from tests.runtime.memory_facade import MemoryFacade
from tests.runtime.waiting import eventually


def test_the_agent_runs_on_uvloop(config: FleetConfig, facade: MemoryFacade, broker: Broker) -> None:
    async def session() -> str:
        agent = FleetAgent(config, "lab", "koch", facade)
        async with running(agent), operator(config) as fleet:
            await fleet.send("koch", "ping")
            await asyncio.to_thread(broker.stop)
            await eventually(lambda: not agent.connected)
            await asyncio.to_thread(broker.start)
            await eventually(lambda: agent.connected)
        async with running(FleetAgent(config, "lab", "koch", facade)), operator(config) as fleet:
            return (await fleet.send("koch", "hold")).state

    assert uvloop.run(session()) == "SUCCEEDED"
    assert facade.names() == ["hold"]


async def test_mutual_tls_to_the_broker(config: FleetConfig, facade: MemoryFacade, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    (tmp_path / "tls").mkdir()
    broker = Broker(tmp_path / "tls", authority.issue("broker"))
    await asyncio.to_thread(broker.start)
    secure = FleetConfig.model_validate(
        config.model_dump() | {"port": broker.port, "plaintext": False, "tls": authority.issue("koch")}
    )
    foreign = Authority(tmp_path, "foreign").issue("eve", trust=authority.ca)
    try:
        async with running(FleetAgent(secure, "lab", "koch", facade)), operator(secure) as fleet:
            assert (await fleet.send("koch", "ping")).state == "SUCCEEDED"
        for wrong in (
            secure.model_copy(update={"tls": foreign}),
            secure.model_copy(update={"tls": secure.tls.model_copy(update={"ca": foreign.certificate})}),
        ):
            with pytest.raises(FleetError, match="no MQTT broker"):
                async with operator(wrong):
                    pass
    finally:
        await asyncio.to_thread(broker.stop)


async def test_a_cancellation_that_a_publish_swallows_still_ends_it(
    config: FleetConfig, facade: MemoryFacade, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``asyncio.wait_for`` before Python 3.12 does that when the answer arrives at the same moment."""
    publishing = asyncio.Event()
    publish = transport.AckingClient.publish

    async def swallowing(self: transport.AckingClient, topic: str, *args: object, **options: object) -> None:
        await publish(self, topic, *args, **options)
        if topic == TOPICS.state:
            publishing.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)

    monkeypatch.setattr(transport.AckingClient, "publish", swallowing)
    task = asyncio.create_task(FleetAgent(config, "lab", "koch", facade).run())
    await asyncio.wait_for(publishing.wait(), 20)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=20)
    assert done
    assert task.cancelled()
