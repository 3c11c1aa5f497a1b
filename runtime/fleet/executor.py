"""Runs accepted commands: urgent ones at once, the others one after the other.

RUNNING is on disk before anything is done, so after a restart it is known what may have had an
effect; nothing is ever run a second time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from hal.errors import HalError
from runtime.errors import RuntimeFault
from runtime.fleet.config import FleetConfig
from runtime.fleet.envelope import Command, CommandState
from runtime.fleet.journal import Journal, JournalError
from runtime.fleet.operations import Operation, Result
from runtime.fleet.receive import Checks, Refusal
from runtime.remote.errors import one_line
from runtime.remote.facade import RobotFacade

_log = logging.getLogger(__name__)


class Executor:
    """Executes for as long as ``run`` runs. ``posted`` is called when a result is in the outbox."""

    def __init__(
        self,
        facade: RobotFacade,
        journal: Journal,
        checks: Checks,
        config: FleetConfig,
        wall_ms: Callable[[], int],
        posted: Callable[[], None],
    ) -> None:
        self._facade = facade
        self._journal = journal
        self._checks = checks
        self._timeout_s = config.command_timeout_s
        self._wall_ms = wall_ms
        self._posted = posted
        self._queue: asyncio.Queue[tuple[Command, Operation]] = asyncio.Queue(config.queue_length)
        self._group: asyncio.TaskGroup | None = None

    @property
    def full(self) -> bool:
        """True when no further command may wait."""
        return self._queue.full()

    def submit(self, command: Command, operation: Operation) -> None:
        """Start or queue a command that is in the journal as ACCEPTED."""
        if operation.urgent:
            self._spawn(self._execute(command, operation))
        else:
            self._queue.put_nowait((command, operation))

    def submit_unjournalled(self, command: Command, operation: Operation) -> None:
        """Run a safe operation although the journal failed."""
        self._spawn(self._run_safe(command, operation))

    async def run(self) -> None:
        """Work off the queue until cancelled."""
        async with asyncio.TaskGroup() as self._group:
            while True:
                command, operation = await self._queue.get()
                await self._execute(command, operation)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        assert self._group is not None, "run() first"
        self._group.create_task(work)

    async def _execute(self, command: Command, operation: Operation) -> None:
        try:
            self._checks.check_expiry(command)  # it may have waited behind others
        except Refusal as refusal:
            await self._advance(command, refusal.state, code=refusal.code, detail=refusal.detail)
            return
        if not await self._advance(command, "RUNNING"):
            if operation.safe:
                await self._run_safe(command, operation)
            return
        state, code, detail, result = await self._outcome(command, operation)
        await self._advance(command, state, code=code, detail=detail, result=result)

    async def _outcome(self, command: Command, operation: Operation) -> tuple[CommandState, str, str, Result]:
        try:
            async with asyncio.timeout(self._timeout_s):
                return "SUCCEEDED", "", "", await operation.run(self._facade, command.args)
        except TimeoutError:
            return "TIMED_OUT", "TIMEOUT", f"no result within {self._timeout_s:g} s", {}
        except (RuntimeFault, HalError) as error:
            return "FAILED", type(error).__name__, one_line(error), {}

    async def _run_safe(self, command: Command, operation: Operation) -> None:
        state, _, detail, _ = await self._outcome(command, operation)
        _log.warning(
            "fleet command run unjournalled id=%s op=%s state=%s detail=%s",
            command.id,
            command.op,
            state,
            detail,
        )

    async def _advance(
        self,
        command: Command,
        state: CommandState,
        *,
        code: str = "",
        detail: str = "",
        result: Result | None = None,
    ) -> bool:
        """Write the next state; False when that failed (the next start then finds it unfinished)."""
        try:
            await self._journal.run(
                self._journal.advance,
                command.id,
                state,
                self._wall_ms(),
                code=code,
                detail=detail,
                result=result,
            )
        except JournalError as error:
            _log.error("fleet command's state not written id=%s state=%s error=%s", command.id, state, error)
            return False
        self._posted()
        return True
