"""The other end of the fleet: sends signed commands to robots and watches who is there."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import aiomqtt
import msgspec

from runtime.errors import RuntimeFault
from runtime.fleet import transport
from runtime.fleet.config import FleetConfig
from runtime.fleet.envelope import Command, Reply, decode_reply, encode, sign
from runtime.fleet.topics import Topics

_log = logging.getLogger(__name__)
_UNSIGNED = "0" * 128


class FleetError(RuntimeFault):
    """The broker cannot be reached, or a robot did not answer in time."""


class RobotStatus(msgspec.Struct, frozen=True):
    """A robot's retained status: ONLINE, OFFLINE (said goodbye) or LOST (its last will)."""

    state: str
    session: int
    ts: int = 0
    software: str = ""


@dataclass(frozen=True, slots=True)
class Presence:
    """One robot's status as a watcher saw it."""

    robot: str
    status: RobotStatus


class FleetClient:
    """Commands robots of one site; use as an async context manager.

    Only the broker's settings of ``config`` are used. ``key`` is the id under which the robots know
    the public key of ``signer`` (ed25519: bytes → 64 bytes). Replies are read with plain aiomqtt:
    losing one costs a resend of the same command, which the robot answers from its journal.
    Raises FleetError when the broker cannot be reached.
    """

    def __init__(
        self, config: FleetConfig, site: str, *, key: str, signer: Callable[[bytes], bytes], name: str = ""
    ) -> None:
        self._config = config
        self._site = site
        self._key = key
        self._signer = signer
        self._name = name or f"tool-{uuid.uuid4().hex[:12]}"
        self._waiting: dict[str, asyncio.Queue[Reply]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._client = aiomqtt.Client(
            config.host,
            config.port,
            username=config.username,
            password=transport.password(config),
            identifier=f"ratchet-{self._name}",
            protocol=aiomqtt.ProtocolVersion.V5,
            keepalive=config.keepalive_s,
            timeout=config.connect_timeout_s,
            tls_context=transport.tls_context(config),
        )

    async def __aenter__(self) -> Self:
        try:
            await self._client.__aenter__()
            await self._client.subscribe(f"ratchet/v1/{self._site}/+/resp/{self._name}", qos=1)
        except aiomqtt.MqttError as error:
            raise FleetError(
                f"no MQTT broker at {self._config.host}:{self._config.port} ({error})", "is it running?"
            ) from error
        self._reader = asyncio.create_task(self._read(), name="fleet-replies")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        await self._client.__aexit__(kind, error, trace)

    def command(
        self,
        robot: str,
        op: str,
        args: dict[str, str] | None = None,
        *,
        lifetime_s: float = 30.0,
        id: str = "",
    ) -> Command:
        """A signed command that expires ``lifetime_s`` from now."""
        now_ms = time.time_ns() // 1_000_000
        command = Command(
            id=id or uuid.uuid4().hex,
            op=op,
            args=args or {},
            issued=now_ms,
            expires=now_ms + round(lifetime_s * 1e3),
            audience=Topics(self._site, robot).audience,
            key=self._key,
            signature=_UNSIGNED,
        )
        return sign(command, self._signer)

    async def send(
        self, robot: str, op: str, args: dict[str, str] | None = None, *, lifetime_s: float = 30.0
    ) -> Reply:
        """Send a command and wait for its final state, at most a little longer than it lives.

        A command the robot refused comes back as a Reply too (``state``, ``code``, ``detail``).
        Raises FleetError when there is no answer; the command may then still be carried out until
        it expires.
        """
        command = self.command(robot, op, args, lifetime_s=lifetime_s)
        return await self.deliver(robot, command, timeout_s=lifetime_s + 5.0)

    async def deliver(self, robot: str, command: Command, *, timeout_s: float) -> Reply:
        """Publish ``command`` and wait for its final state. Raises FleetError after ``timeout_s``."""
        topics = Topics(self._site, robot)
        replies = self._waiting.setdefault(command.id, asyncio.Queue())
        properties = transport.publish_properties(
            correlation=command.id.encode(),
            response=topics.response(self._name),
            expiry_s=max(1, (command.expires - command.issued) // 1000),
        )
        try:
            async with asyncio.timeout(timeout_s):
                await self._client.publish(
                    topics.command(command.op), encode(command), qos=1, properties=properties
                )
                while not (reply := await replies.get()).final:
                    pass
                return reply
        except TimeoutError:
            raise FleetError(
                f"{robot} did not answer {command.op}", "is it online? (ratchet fleet status)"
            ) from None
        except aiomqtt.MqttError as error:
            raise FleetError(f"the broker went away ({error})", "try again") from error
        finally:
            self._waiting.pop(command.id, None)

    async def _read(self) -> None:
        async for message in self._client.messages:
            payload = message.payload if isinstance(message.payload, bytes) else b""
            try:
                reply = decode_reply(payload)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                _log.debug("no reply topic=%s error=%s", message.topic, error)
                continue
            # A refusal made before the envelope was believed has no id, only our correlation data.
            correlation = getattr(message.properties, "CorrelationData", b"")
            waiting = self._waiting.get(reply.id or correlation.decode("ascii", "replace"))
            if waiting is not None:
                waiting.put_nowait(reply)


async def watch_presence(config: FleetConfig, site: str) -> AsyncIterator[Presence]:
    """Status of every robot of ``site`` as it changes, retained ones first; ends when the broker does.

    A LOST whose session is not that of the robot's last ONLINE is a will that came late: dropped.
    Raises FleetError when the broker cannot be reached or goes away.
    """
    sessions: dict[str, int] = {}
    client = aiomqtt.Client(
        config.host,
        config.port,
        username=config.username,
        password=transport.password(config),
        protocol=aiomqtt.ProtocolVersion.V5,
        keepalive=config.keepalive_s,
        tls_context=transport.tls_context(config),
    )
    try:
        async with client:
            await client.subscribe(f"ratchet/v1/{site}/+/status", qos=1)
            async for message in client.messages:
                robot = str(message.topic).split("/")[3]
                payload = message.payload if isinstance(message.payload, bytes) else b""
                try:
                    status = msgspec.json.decode(payload, type=RobotStatus)
                except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                    _log.debug("no status topic=%s error=%s", message.topic, error)
                    continue
                if status.state == "LOST" and sessions.get(robot, status.session) != status.session:
                    continue
                sessions[robot] = status.session
                yield Presence(robot, status)
    except aiomqtt.MqttError as error:
        raise FleetError(
            f"the MQTT broker at {config.host}:{config.port} is away ({error})", "is it running?"
        ) from error
