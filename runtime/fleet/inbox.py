"""From a message to a verdict: the checks, the journal, and only then the acknowledgement."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import aiomqtt

from hal.errors import HalError
from runtime.errors import RuntimeFault
from runtime.fleet.envelope import Command, CommandState, Reply, encode
from runtime.fleet.executor import Executor
from runtime.fleet.journal import Journal, JournalError, ReturnAddress
from runtime.fleet.operations import ANY_MODE, Operation
from runtime.fleet.receive import Checks, Refusal
from runtime.fleet.topics import Topics
from runtime.remote.facade import Mode, RobotFacade

_log = logging.getLogger(__name__)
_MAX_CORRELATION = 256


@dataclass(slots=True)
class FleetStats:
    """Counts since start. ``refused`` is by code."""

    connections: int = 0
    received: int = 0
    duplicates: int = 0
    refused: Counter[str] = field(default_factory=Counter)


def _nothing() -> None:
    return


@dataclass(frozen=True, slots=True)
class Handled:
    """What to do about a message now that it was judged.

    ``acknowledge`` it (it is in the journal, or never will be), then ``start`` what it asked for;
    publish ``payload`` to ``direct`` when the reply could not go through the outbox.
    """

    acknowledge: bool = True
    direct: ReturnAddress | None = None
    payload: bytes = b""
    start: Callable[[], None] = _nothing


class Inbox:
    """Judges one message at a time."""

    def __init__(
        self,
        topics: Topics,
        checks: Checks,
        journal: Journal,
        executor: Executor,
        facade: RobotFacade,
        lease_holder: Callable[[], str],
        wall_ms: Callable[[], int],
        stats: FleetStats,
    ) -> None:
        self._topics = topics
        self._checks = checks
        self._journal = journal
        self._executor = executor
        self._facade = facade
        self._lease_holder = lease_holder
        self._wall_ms = wall_ms
        self._stats = stats

    async def receive(self, message: aiomqtt.Message) -> Handled:
        """Judge one message, writing an authentic command into the journal. Never raises on bad input."""
        self._stats.received += 1
        address = self._return_address(message)
        payload = message.payload if isinstance(message.payload, bytes) else b""
        try:
            command, operation = self._checks.authenticate(
                str(message.topic), payload, retained=bool(message.retain)
            )
        except Refusal as refusal:
            self._count(refusal)
            return self._refuse(refusal, address)
        verdict, admitted = await self._judge(command, operation)
        if address is None:
            address = ReturnAddress(self._topics.response(command.key.replace("/", "_")), None)
        try:
            fresh, stored = await self._journal.run(
                self._journal.accept, command, verdict, address, self._wall_ms()
            )
        except JournalError as error:
            return self._without_journal(command, operation, admitted, address, error)
        if not fresh:
            self._stats.duplicates += 1
            _log.info("fleet command again id=%s op=%s state=%s", command.id, command.op, stored.state)
            return Handled()
        _log.info(
            "fleet command id=%s op=%s key=%s state=%s code=%s",
            command.id,
            command.op,
            command.key,
            verdict.state,
            verdict.code,
        )
        if not admitted:
            return Handled()
        return Handled(start=lambda: self._executor.submit(command, operation))

    async def _judge(self, command: Command, operation: Operation) -> tuple[Reply, bool]:
        try:
            mode = None if operation.modes == ANY_MODE else await self._mode()
            self._checks.admit(command, operation, mode, self._lease_holder())
            if not operation.urgent and self._executor.full:
                raise Refusal("BUSY", "too many commands are waiting")
        except Refusal as refusal:
            self._count(refusal)
            return self._reply(command, refusal.state, refusal.code, refusal.detail), False
        return self._reply(command, "ACCEPTED"), True

    async def _mode(self) -> Mode:
        try:
            return (await self._facade.state()).mode
        except (RuntimeFault, HalError) as error:
            _log.warning("mode unknown reason=%s", error)
            return "fault"

    def _without_journal(
        self,
        command: Command,
        operation: Operation,
        admitted: bool,
        address: ReturnAddress,
        error: JournalError,
    ) -> Handled:
        """A full disk must not keep anybody from stopping the arm; everything else is refused."""
        _log.error("fleet journal failed id=%s error=%s", command.id, error)
        if admitted and operation.safe:
            return Handled(start=lambda: self._executor.submit_unjournalled(command, operation))
        reply = self._reply(command, "REJECTED", "JOURNAL", "the command could not be written down")
        return Handled(direct=address, payload=encode(reply))

    def _refuse(self, refusal: Refusal, address: ReturnAddress | None) -> Handled:
        _log.warning("fleet message refused code=%s detail=%s", refusal.code, refusal.detail)
        if address is None:
            return Handled()
        reply = Reply("", "", refusal.state, 1, self._wall_ms(), refusal.code, refusal.detail)
        return Handled(direct=address, payload=encode(reply))

    def _count(self, refusal: Refusal) -> None:
        self._stats.refused[refusal.code] += 1

    def _reply(self, command: Command, state: CommandState, code: str = "", detail: str = "") -> Reply:
        return Reply(command.id, command.op, state, 1, self._wall_ms(), code, detail)

    def _return_address(self, message: aiomqtt.Message) -> ReturnAddress | None:
        topic = getattr(message.properties, "ResponseTopic", None)
        if not isinstance(topic, str) or not self._topics.is_response(topic):
            return None
        correlation = getattr(message.properties, "CorrelationData", None)
        if not isinstance(correlation, bytes) or len(correlation) > _MAX_CORRELATION:
            correlation = None
        return ReturnAddress(topic, correlation)
