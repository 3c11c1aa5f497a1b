"""Bundles whose engine process has ended are loaded again: in turn, with growing pauses, behind what serves.

What serves comes first, and is tried for ever. An idle one is given up after a few attempts and is not
resident any more: neither a way back nor a version to swap to that is not there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from policy_server.errors import RefusedBundleError, ServerError
from policy_server.loader import Loader
from policy_server.slots import BundleSlots, Slot
from policy_server.standing import Standing

log = logging.getLogger(__name__)

_ATTEMPTS = 5  # of an idle one
_FIRST_PAUSE_S = 1.0  # doubled after each
_LONGEST_PAUSE_S = 8.0


@dataclass
class _Case:
    """A slot whose engine has ended, and what was tried."""

    dead: Slot
    failed: int = 0
    not_before: float = 0.0  # monotonic, s
    attempt: asyncio.Task[Slot | ServerError] | None = None


class Reviver:
    """At most one attempt at a time for each slot; owned by the event loop."""

    def __init__(
        self, slots: BundleSlots, loader: Loader, standing: Standing, changed: Callable[[], None]
    ) -> None:
        """``changed`` is called when what has to be kept on disk is another."""
        self._slots = slots
        self._loader = loader
        self._standing = standing
        self._changed = changed
        self._cases: dict[int, _Case] = {}

    def tick(self, but: Collection[Slot]) -> None:
        """See who has ended, and try the next one whose pause is over, while no attempt is under way.

        Not what is given up and barred, nor who is in ``but``.
        """
        self._cases = {key: case for key, case in self._cases.items() if case.attempt or self._needed(case)}
        if any(case.attempt for case in self._cases.values()):
            return
        serving = self._slots.serving
        ended = [slot for slot in self._slots.slots if not slot.alive and all(slot is not s for s in but)]
        ended.sort(key=lambda slot: serving is None or slot is not serving.slot)
        for slot in ended:
            case = self._case(slot)
            if slot.version not in self._standing.barred and time.monotonic() >= case.not_before:
                self._begin(case)
                return

    def begin(self, dead: Slot) -> None:
        """Try one now, unless it is being tried or has to pause."""
        case = self._case(dead)
        if time.monotonic() >= case.not_before:
            self._begin(case)

    async def again(self, dead: Slot) -> Slot:
        """What is in its place once it is loaded again: one attempt, the one under way if there is one.

        Raises ServerError.
        """
        attempt = self._begin(self._case(dead))
        found = await asyncio.shield(attempt)  # others may wait for it
        if isinstance(found, ServerError):
            raise found
        return found

    def close(self) -> None:
        """Wait for nothing any more."""
        for case in self._cases.values():
            if case.attempt is not None:
                case.attempt.cancel()

    def _case(self, dead: Slot) -> _Case:
        return self._cases.setdefault(id(dead), _Case(dead))

    def _begin(self, case: _Case) -> asyncio.Task[Slot | ServerError]:
        if case.attempt is None:
            case.attempt = asyncio.get_running_loop().create_task(self._try(case))
        return case.attempt

    async def _try(self, case: _Case) -> Slot | ServerError:
        try:
            return await self._attempt(case)
        finally:
            case.attempt = None

    async def _attempt(self, case: _Case) -> Slot | ServerError:
        dead = case.dead
        try:
            slot = await self._loader.again(dead.place, lambda: self._needed(case))
        except ServerError as error:
            return self._settle(case, error)
        if not self._needed(case):  # evicted, or somebody else put another there
            slot.close()
            return self._settle(case, RefusedBundleError(f"bundle {dead.version} is not resident any more"))
        self._slots.replace(dead, slot)
        log.warning("revival.revived version=%s pid=%d was=%d", slot.version, slot.pid, dead.pid)
        self._standing.note("revived", dead.version, reason="its engine process had ended")
        self._changed()
        return slot

    def _settle(self, case: _Case, error: ServerError) -> Slot | ServerError:
        """After an attempt that came to nothing: what is there instead, or the error, and maybe the end."""
        dead, serving = case.dead, self._slots.serving
        other = self._slots.find(dead.version, dead.backend)
        if other is not None and other.alive:
            return other
        if not self._needed(case):
            return error
        case.failed += 1
        pause_s = min(_FIRST_PAUSE_S * 2 ** (case.failed - 1), _LONGEST_PAUSE_S)
        case.not_before = time.monotonic() + pause_s
        log.error("revival.failed version=%s attempt=%d reason=%s", dead.version, case.failed, error)
        if serving is not None and serving.slot is dead:
            if case.failed == 1:
                self._standing.note("not revived", dead.version, reason=str(error))
                self._changed()
        elif case.failed >= _ATTEMPTS:
            self._give_up(dead, error)
        return error

    def _give_up(self, dead: Slot, error: ServerError) -> None:
        """Let go of an idle one, and of the probation whose way back it was."""
        fallback = self._slots.pinned.get("fallback")
        needed = dead is self._slots.previous or dead is fallback
        if dead is fallback:
            self._standing.trial = None
        self._slots.drop(dead)
        self._standing.note("no way back" if needed else "not revived", dead.version, reason=str(error))
        self._changed()

    def _needed(self, case: _Case) -> bool:
        """Whether the dead one still has a place here."""
        return any(slot is case.dead for slot in self._slots.slots)
