"""How episodes under a policy ended, told to the server that serves it: what a probation is judged by.

Nothing waits for it. Reports queue up while the server is away; beyond a bound the oldest are lost.
A policy that drives without an episode being recorded is reported minute by minute.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from runtime.policy_types import PolicyClientError, PolicyRefusedError
from runtime.supervisor import State

log = logging.getLogger(__name__)

_MAX_WAITING = 256
_LOOK_S = 1.0
_RETRY_S = 5.0
SPAN_S = 60.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """One episode: which version drove (the last, when ``mixed``), whether it failed, kinds of its flags."""

    episode: str
    version: str
    failed: bool
    flags: tuple[str, ...]
    mixed: bool


class Reporter(Protocol):
    """The policy client: tells the server one outcome, or raises PolicyClientError."""

    async def report(self, outcome: Outcome) -> str: ...


class Drive:
    """What the loop notes of a policy's driving since the episode or the span began."""

    def __init__(self) -> None:
        self.versions: list[str] = []
        self.kinds: set[str] = set()  # of the flags raised
        self.taken_over = False

    def answered(self, version: str) -> None:
        """A chunk of that version is being played."""
        if version not in self.versions:
            self.versions.append(version)


class Driven(Protocol):
    """The control loop."""

    drive: Drive
    state: State


class Recording(Protocol):
    """The recorder: the episode that is running, or None."""

    @property
    def running(self) -> str | None: ...


class Outcomes:
    """Collects outcomes and sends them behind the loop."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._waiting: deque[Outcome] = deque(maxlen=_MAX_WAITING)
        self._arrived = asyncio.Event()

    def ended(self, episode: str, drive: Drive, failed: bool, kinds: Collection[str]) -> None:
        """An episode has ended. One that no policy drove is nobody's; a take-over counts as failed."""
        if not drive.versions:
            return
        self._waiting.append(
            Outcome(
                episode=episode,
                version=drive.versions[-1],
                failed=failed or drive.taken_over,
                flags=tuple(sorted(kinds)),
                mixed=len(drive.versions) > 1,
            )
        )
        self._arrived.set()

    async def watch(self, loop: Driven, recorder: Recording) -> None:
        """Report each minute that a policy drives outside an episode, until cancelled."""
        spent_s = 0.0
        while True:
            await asyncio.sleep(_LOOK_S)
            if loop.state is not State.POLICY or recorder.running is not None:
                spent_s = 0.0
                continue
            spent_s += _LOOK_S
            if spent_s >= SPAN_S:
                spent_s = 0.0
                drive, loop.drive = loop.drive, Drive()
                self.ended(f"span-{uuid.uuid4().hex}", drive, False, drive.kinds)

    async def send(self) -> None:
        """Send what waits, oldest first, until cancelled; again and again while the server is away."""
        while True:
            while self._waiting:
                outcome = self._waiting[0]
                try:
                    verdict = await self._reporter.report(outcome)
                except PolicyRefusedError as error:
                    log.warning("outcomes.refused episode=%s reason=%s", outcome.episode, error)
                except PolicyClientError:
                    await asyncio.sleep(_RETRY_S)
                    continue
                else:
                    log.info("outcomes.sent episode=%s verdict=%s", outcome.episode, verdict)
                if self._waiting and self._waiting[0] is outcome:
                    self._waiting.popleft()
            self._arrived.clear()
            await self._arrived.wait()
