"""A fleet agent running here or as a process, an operator, and ears on a real broker."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiomqtt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from runtime.fleet import transport
from runtime.fleet.agent import FleetAgent
from runtime.fleet.client import FleetClient
from runtime.fleet.config import FleetConfig
from runtime.fleet.envelope import Command, Reply, encode
from runtime.fleet.topics import Topics
from tests.runtime.waiting import eventually

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
OTHER = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
TOPICS = Topics("lab", "koch")
ROBOT = Path(__file__).parent / "fleet_robot.py"
ROOT = Path(__file__).parents[3]


@contextlib.asynccontextmanager
async def running(agent: FleetAgent) -> AsyncIterator[FleetAgent]:
    task = asyncio.create_task(agent.run())
    try:
        await eventually(lambda: agent.connected or task.done())
        yield agent
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.asynccontextmanager
async def listening(config: FleetConfig, topic: str) -> AsyncIterator[list[aiomqtt.Message]]:
    """Everything published under ``topic`` from now on, retained first."""
    heard: list[aiomqtt.Message] = []

    async def listen(client: aiomqtt.Client) -> None:
        async for message in client.messages:
            heard.append(message)

    async with aiomqtt.Client(config.host, config.port, protocol=aiomqtt.ProtocolVersion.V5) as client:
        await client.subscribe(topic, qos=1)
        task = asyncio.create_task(listen(client))
        try:
            yield heard
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def operator(config: FleetConfig, key: Ed25519PrivateKey = KEY, name: str = "tool") -> FleetClient:
    return FleetClient(config, "lab", key="ops", signer=key.sign, name=name)


def statuses(heard: list[aiomqtt.Message]) -> list[tuple[str, int]]:
    found = [msgspec.json.decode(m.payload) for m in heard if str(m.topic) == TOPICS.status]
    return [(status["state"], status["session"]) for status in found]


async def publish(
    config: FleetConfig, command: Command, *, times: int = 1, retain: bool = False, topic: str = ""
) -> None:
    properties = transport.publish_properties(response=TOPICS.response("raw"), correlation=b"corr")
    async with aiomqtt.Client(config.host, config.port, protocol=aiomqtt.ProtocolVersion.V5) as client:
        for _ in range(times):
            await client.publish(
                topic or TOPICS.command(command.op),
                encode(command),
                qos=1,
                retain=retain,
                properties=properties,
            )


def replies(heard: list[aiomqtt.Message]) -> list[Reply]:
    return [msgspec.json.decode(m.payload, type=Reply) for m in heard if "/resp/" in str(m.topic)]


class RobotProcess:
    """fleet_robot.py as a child."""

    def __init__(self, config: FleetConfig, directory: Path, hang: str = "") -> None:
        settings = directory / "fleet.json"
        settings.write_text(config.model_dump_json())
        self.effects = directory / "effects"
        arguments = [sys.executable, str(ROBOT), str(settings), str(self.effects)]
        if hang:
            arguments.append(hang)
        self.process = subprocess.Popen(arguments, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})

    def lines(self) -> list[str]:
        return self.effects.read_text().splitlines() if self.effects.exists() else []

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(timeout=10)
