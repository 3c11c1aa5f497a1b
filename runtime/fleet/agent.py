"""The fleet agent: one robot on an MQTT 5 broker.

``run`` connects, announces the robot, takes commands and reports, and comes back with jittered
backoff for as long as it lives. Commands keep executing while the broker is away; their results
wait in the journal's outbox.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from collections.abc import Callable

import aiomqtt
from paho.mqtt.subscribeoptions import SubscribeOptions

from hal.errors import HalError
from hal.types import JOINTS
from runtime.errors import RuntimeFault
from runtime.fleet import transport
from runtime.fleet.config import FleetConfig
from runtime.fleet.envelope import encode
from runtime.fleet.executor import Executor
from runtime.fleet.inbox import FleetStats, Inbox
from runtime.fleet.journal import Journal, JournalError
from runtime.fleet.operations import OPERATIONS
from runtime.fleet.receive import Checks
from runtime.fleet.reports import change_key, state_report, summary_report
from runtime.fleet.topics import Topics
from runtime.remote.facade import RobotFacade, RobotSnapshot

_log = logging.getLogger(__name__)

_GOODBYE_S = 2.0
_JOURNAL_RETRY_S = 1.0
_SETTLED_S = 10.0  # a connection that lived this long resets the backoff


class FleetAgent:
    """One robot's presence on the fleet's broker.

    ``lease_holder`` tells who holds the gRPC control lease, so that a fleet command cannot move the
    arm under somebody's hands. ``wall_ms`` is the robot's clock, Unix ms. Raises JournalError when
    the journal cannot be opened; a broker that is away is no error.
    """

    def __init__(
        self,
        config: FleetConfig,
        site: str,
        robot: str,
        facade: RobotFacade,
        *,
        software: str = "",
        lease_holder: Callable[[], str] = str,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._config = config
        self._facade = facade
        self._software = software
        self._lease_holder = lease_holder
        self._wall_ms = wall_ms
        self.topics = Topics(site, robot)
        self.stats = FleetStats()
        self.connected = False
        self._ending = False
        self._session = 0
        self._rng = random.Random()
        self._posted = asyncio.Event()
        self._journal = Journal(config.journal, outbox_rows=config.outbox_rows, remember_s=config.remember_s)
        self._checks = Checks(config, self.topics, wall_ms)
        self._executor = Executor(facade, self._journal, self._checks, config, wall_ms, self._posted.set)
        self._inbox = Inbox(
            self.topics,
            self._checks,
            self._journal,
            self._executor,
            facade,
            lease_holder,
            wall_ms,
            self.stats,
        )
        self._arrived: asyncio.Queue[tuple[transport.AckingClient, aiomqtt.Message]] = asyncio.Queue(
            transport.RECEIVE_MAXIMUM
        )

    async def run(self) -> None:
        """Be part of the fleet until cancelled; then say goodbye to the broker."""
        try:
            interrupted = await self._journal.run(self._journal.interrupt_unfinished, self._wall_ms())
            for reply in interrupted:
                _log.warning("fleet command interrupted id=%s op=%s", reply.id, reply.op)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._executor.run())
                group.create_task(self._handle_arrivals())
                group.create_task(self._stay_connected())
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    # A connection that breaks while it is being cancelled raises its own error
                    # instead, and a publish acknowledged at that moment returns as if nothing were
                    # (asyncio.wait_for before Python 3.12): the cancellation alone would not end them.
                    self._ending = True
                    raise
        finally:
            self._journal.close()

    async def event(self, kind: str, **data: object) -> None:
        """Report that something happened; kept on disk until the broker has it. Raises JournalError."""
        payload = encode({"id": uuid.uuid4().hex, "kind": kind, "ts": self._wall_ms(), "data": data})
        await self._journal.run(self._journal.post_event, self.topics.event, payload)
        self._posted.set()

    # --- the connection ------------------------------------------------------------------------

    async def _stay_connected(self) -> None:
        config = self._config
        waits = transport.backoff(config.backoff_min_s, config.backoff_max_s, self._rng)
        while True:
            started_s = time.monotonic()
            try:
                await self._connection()
            except* aiomqtt.MqttError as errors:
                _log.warning("fleet broker away reason=%s", errors.exceptions[0])
            if self._ending:
                return
            if time.monotonic() - started_s > _SETTLED_S:
                waits = transport.backoff(config.backoff_min_s, config.backoff_max_s, self._rng)
            await asyncio.sleep(next(waits))

    async def _connection(self) -> None:
        try:
            self._session = await self._journal.run(self._journal.next_session)
        except JournalError as error:
            self._session += 1  # a full disk must not keep the robot out of reach of a stop
            _log.error("session not written error=%s", error)
        client = self._client()
        async with client:
            try:
                await self._announce(client)
                if self._ending:
                    raise asyncio.CancelledError
                self.stats.connections += 1
                self.connected = True
                _log.info("fleet connected host=%s session=%d", self._config.host, self._session)
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._take_commands(client))
                    group.create_task(self._send_outbox(client))
                    group.create_task(self._send_state(client))
                    group.create_task(self._send_telemetry(client))
            except asyncio.CancelledError:
                await self._goodbye(client)
                raise
            finally:
                self.connected = False

    def _client(self) -> transport.AckingClient:
        config = self._config
        client = transport.AckingClient(
            config.host,
            config.port,
            username=config.username,
            password=transport.password(config),
            identifier=f"ratchet-{self.topics.site}-{self.topics.robot}",
            protocol=aiomqtt.ProtocolVersion.V5,
            will=transport.will(self.topics.status, self._status("LOST"), config.will_delay_s),
            clean_start=False,
            properties=transport.connect_properties(config),
            keepalive=config.keepalive_s,
            timeout=config.connect_timeout_s,
            tls_context=transport.tls_context(config),
        )
        client.manual_acknowledgement()
        return client

    async def _announce(self, client: aiomqtt.Client) -> None:
        """Subscribe before the birth: whoever sees ONLINE may send at once."""
        # retainAsPublished: otherwise the broker hides the flag of a command published as retained
        # while we are connected, and we could not refuse it.
        options = SubscribeOptions(qos=1, retainAsPublished=True)
        await client.subscribe(self.topics.commands, options=options)
        await client.publish(self.topics.factsheet, self._factsheet(), qos=1, retain=True)
        await client.publish(self.topics.status, self._status("ONLINE"), qos=1, retain=True)

    async def _goodbye(self, client: aiomqtt.Client) -> None:
        try:
            async with asyncio.timeout(_GOODBYE_S):
                await client.publish(self.topics.status, self._status("OFFLINE"), qos=1, retain=True)
        except (aiomqtt.MqttError, TimeoutError) as error:
            _log.info("no goodbye reason=%s", error)

    def _status(self, state: str) -> bytes:
        # A will is written at connect time, so its time stamp would be of no use: LOST has none.
        status: dict[str, object] = {"state": state, "session": self._session}
        if state != "LOST":
            status |= {"ts": self._wall_ms(), "software": self._software}
        return encode(status)

    def _factsheet(self) -> bytes:
        return encode(
            {
                "schema": 1,
                "robot": self.topics.robot,
                "site": self.topics.site,
                "software": self._software,
                "joints": JOINTS,
                "operations": {name: operation.role.name.lower() for name, operation in OPERATIONS.items()},
                "keys": sorted(self._config.keys),
                "max_command_bytes": self._config.max_command_bytes,
                "max_lifetime_s": self._config.max_lifetime_s,
            }
        )

    # --- what runs while connected -------------------------------------------------------------

    async def _take_commands(self, client: transport.AckingClient) -> None:
        async for message in client.messages:
            await self._arrived.put((client, message))
            if len(client.messages) > transport.MAX_BACKLOG:
                raise aiomqtt.MqttError(f"the broker sent more than {transport.MAX_BACKLOG} messages ahead")

    async def _handle_arrivals(self) -> None:
        """Outlives connections: a command that reached the journal is started even if the broker is
        lost at that moment; its acknowledgement then fails and it comes again as a duplicate."""
        while not self._ending:
            client, message = await self._arrived.get()
            handled = await self._inbox.receive(message)
            if handled.acknowledge:
                client.acknowledge(message)
            handled.start()
            self._posted.set()
            if handled.direct is not None:
                properties = transport.publish_properties(correlation=handled.direct.correlation)
                try:
                    await client.publish(handled.direct.topic, handled.payload, qos=1, properties=properties)
                except aiomqtt.MqttError as error:
                    _log.warning("refusal not delivered reason=%s", error)

    async def _send_outbox(self, client: aiomqtt.Client) -> None:
        while not self._ending:
            self._posted.clear()
            try:
                delivered = await self._drain(client)
            except JournalError as error:
                _log.error("fleet outbox stuck error=%s", error)
                await asyncio.sleep(_JOURNAL_RETRY_S)
                continue
            if not delivered:
                await self._posted.wait()

    async def _drain(self, client: aiomqtt.Client) -> int:
        letters = await self._journal.run(self._journal.letters)
        for letter in letters:
            properties = transport.publish_properties(correlation=letter.correlation)
            await client.publish(letter.topic, letter.payload, qos=1, properties=properties)
            await self._journal.run(self._journal.delivered, letter.seq)
        return len(letters)

    async def _send_state(self, client: aiomqtt.Client) -> None:
        last_key: object = None
        sent_s, seq = 0.0, 0
        while not self._ending:
            snapshot = await self._snapshot()
            now_s = time.monotonic()
            if snapshot is not None:
                holder = self._lease_holder()
                key = change_key(snapshot, holder)
                if key != last_key or now_s - sent_s >= self._config.state_period_s:
                    last_key, sent_s, seq = key, now_s, seq + 1
                    report = encode(state_report(snapshot, holder, seq, self._wall_ms()))
                    await client.publish(self.topics.state, report, qos=0, retain=True)
            await asyncio.sleep(self._config.state_poll_s)

    async def _send_telemetry(self, client: aiomqtt.Client) -> None:
        seq = 0
        while not self._ending:
            await asyncio.sleep(self._config.telemetry_period_s)
            snapshot = await self._snapshot()
            if snapshot is not None:
                seq += 1
                report = encode(summary_report(snapshot, seq, self._wall_ms()))
                await client.publish(self.topics.summary, report, qos=0)

    async def _snapshot(self) -> RobotSnapshot | None:
        try:
            return await self._facade.state()
        except (RuntimeFault, HalError) as error:
            _log.warning("no state for the fleet reason=%s", error)
            return None
