"""The bundles in memory: which one serves, which one served before, which ones are ready.

Owned by the event loop. The inference thread only ever reads `BundleSlots.serving`, one reference
that is replaced as a whole: a request runs entirely on the bundle it started with, and the next
one on whatever is serving then.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from policies.manifest import Manifest
from policies.session import PolicySession
from policy_server.costs import BatchCosts
from policy_server.errors import RefusedBundleError, RollbackError, UnknownVersionError
from policy_server.process_session import ProcessSession
from policy_server.spec import IOSpec
from policy_server.standing import Place

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Slot:
    """A bundle that was verified, loaded, found true to its golden vectors, and warmed."""

    version: str
    backend: str
    session: PolicySession
    manifest: Manifest
    spec: IOSpec
    path: Path = Path()
    pid: int = 0  # of its engine process; 0: it runs in the server's
    costs: BatchCosts = field(default_factory=BatchCosts)
    passed_over: tuple[str, ...] = ()  # faster ways to run it that failed on this machine

    @property
    def place(self) -> Place:
        """Where a restarted server finds it again."""
        return Place(version=self.version, path=str(self.path), backend=self.backend)

    @property
    def calibrated(self) -> bool:
        """Whether the bundle carries its monitors' thresholds."""
        return self.manifest.monitors is not None

    def close(self) -> None:
        """End its engine process, if it has one."""
        if isinstance(self.session, ProcessSession):
            self.session.close()

    @property
    def alive(self) -> bool:
        """Whether it can answer; an engine process may have ended."""
        return not isinstance(self.session, ProcessSession) or self.session.alive


@dataclass(frozen=True, slots=True)
class Serving:
    """The slot that answers, and the epoch it answers in."""

    slot: Slot
    epoch: int


class BundleSlots:
    """At most ``max_resident`` slots; the active one, its predecessor and ``pinned`` are never evicted."""

    def __init__(self, max_resident: int, allow_uncalibrated: bool) -> None:
        self._max_resident = max_resident
        self._allow_uncalibrated = allow_uncalibrated
        self._slots: list[Slot] = []  # oldest first
        self._serving: Serving | None = None
        self._previous: Slot | None = None
        self.pinned: dict[str, Slot] = {}  # by what for

    @property
    def serving(self) -> Serving | None:
        """What answers requests now; None before the first activation."""
        return self._serving

    @property
    def previous(self) -> Slot | None:
        """What `rollback` goes back to."""
        return self._previous

    @property
    def epoch(self) -> int:
        """How many activations there have been, rollbacks included."""
        return self._serving.epoch if self._serving else 0

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Everything resident, oldest first."""
        return tuple(self._slots)

    def find(self, version: str, backend: str | None = None) -> Slot | None:
        """The resident slot of that version (the newest, whatever its backend, when none is named)."""
        for slot in reversed(self._slots):
            if slot.version == version and backend in (None, slot.backend):
                return slot
        return None

    def add(self, slot: Slot) -> Slot:
        """Keep a slot and evict what is in excess; returns the resident one if it was there before.

        A version is a content id, so the same version on the same backend is the same thing.
        """
        resident = self.find(slot.version, slot.backend)
        if resident is not None:
            return resident
        self._slots.append(slot)
        idle = [s for s in self._slots[:-1] if not self._is_kept(s)]
        for excess in idle[: max(len(self._slots) - self._max_resident, 0)]:
            self._slots.remove(excess)
            log.info("slots.evicted version=%s backend=%s", excess.version, excess.backend)
        return slot

    def check_replacement(self, manifest: Manifest, spec: IOSpec, version: str) -> None:
        """Raise RefusedBundleError when a bundle must not take over from the serving one."""
        if self._serving is None:
            return
        active = self._serving.slot
        difference = active.spec.difference(spec)
        if difference is not None:
            raise RefusedBundleError(
                f"bundle {version} cannot replace {active.version} while serving: {difference}; "
                "restart the server with it"
            )
        if active.calibrated and manifest.monitors is None and not self._allow_uncalibrated:
            raise RefusedBundleError(
                f"bundle {version} has no monitor thresholds and {active.version} has; "
                "calibrate it before swapping"
            )

    def activate(self, slot: Slot) -> Serving:
        """Serve a resident slot from the next request on. Raises RefusedBundleError."""
        if self._serving is not None and self._serving.slot is slot:
            return self._serving
        self.check_replacement(slot.manifest, slot.spec, slot.version)
        self._previous = self._serving.slot if self._serving else None
        return self._serve(slot)

    def swap(self, version: str) -> Serving:
        """`activate` by version. Raises UnknownVersionError or RefusedBundleError."""
        slot = self.find(version)
        if slot is None:
            resident = ", ".join(s.version for s in self._slots) or "nothing"
            raise UnknownVersionError(f"bundle {version[:64]!r} is not loaded ({resident} is); load it first")
        return self.activate(slot)

    def rollback(self, to: Slot | None = None) -> Serving:
        """Serve the predecessor again, or ``to``. Raises RollbackError; a second rollback in a row does."""
        slot = to or self._previous
        if slot is None:
            raise RollbackError("no bundle served before the present one; swap to a loaded version")
        self._previous = None
        return self._serve(slot)

    def stand_by(self, slot: Slot) -> None:
        """Make a resident slot the predecessor, as it was before a restart."""
        self._previous = slot

    def replace(self, dead: Slot, slot: Slot) -> None:
        """Put ``slot`` where ``dead`` was, whose engine has gone, in every role it had."""
        self._slots = [slot if s is dead else s for s in self._slots]
        self.pinned = {why: slot if s is dead else s for why, s in self.pinned.items()}
        if self._previous is dead:
            self._previous = slot
        if self._serving is not None and self._serving.slot is dead:
            self._serve(slot)

    def drop(self, dead: Slot) -> None:
        """Let go of an idle slot in every role it had."""
        self._slots = [s for s in self._slots if s is not dead]
        self.pinned = {why: s for why, s in self.pinned.items() if s is not dead}
        if self._previous is dead:
            self._previous = None

    def _serve(self, slot: Slot) -> Serving:
        self._serving = Serving(slot, self.epoch + 1)
        log.info(
            "slots.serving version=%s backend=%s epoch=%d", slot.version, slot.backend, self._serving.epoch
        )
        return self._serving

    def _is_kept(self, slot: Slot) -> bool:
        active = self._serving.slot if self._serving else None
        return (
            slot is active or slot is self._previous or any(slot is pinned for pinned in self.pinned.values())
        )
