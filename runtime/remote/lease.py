"""The control lease: one holder, kept by heartbeats; lost means hold.

The lease is the only thing that lets a caller move the arm. It is bound to the caller that
acquired it, so that knowing its id is not enough.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from hal.clock import Clock
from runtime.remote.errors import LeaseHeldError, LeaseLostError

_log = logging.getLogger(__name__)

OnLost = Callable[[str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class LeaseInfo:
    """A lease in force: its secret id, who holds it (a label) and as which authenticated caller."""

    id: str
    holder: str
    caller: str
    window_s: float


class ControlLease:
    """At most one lease at a time; ``watch`` calls ``on_lost`` once when it expires.

    ``window_s`` is how long the lease lives without a heartbeat. Checking is done against the
    clock on every call, so an expired lease is refused even before the watcher has noticed.
    """

    def __init__(self, window_s: float, clock: Clock, on_lost: OnLost) -> None:
        self._window_ns = round(window_s * 1e9)
        self._clock = clock
        self._on_lost = on_lost
        self._lease: LeaseInfo | None = None
        self._expires_ns = 0
        self._changed = asyncio.Event()

    @property
    def holder(self) -> str:
        """Label of the present holder, or an empty string."""
        return self._lease.holder if self._lease is not None and not self._expired() else ""

    def acquire(self, holder: str, caller: str) -> LeaseInfo:
        """Take control. Raises LeaseHeldError while another lease is alive."""
        if self._lease is not None:
            if not self._expired():
                raise LeaseHeldError(
                    f"control is held by {self._lease.holder}",
                    "wait until it is released or its lease expires",
                )
            raise LeaseHeldError("control was just lost and the arm is being put on hold", "try again")
        self._lease = LeaseInfo(secrets.token_hex(16), holder, caller, self._window_ns / 1e9)
        self._extend()
        self._changed.set()
        _log.info("lease acquired holder=%s caller=%s", holder, caller)
        return self._lease

    def heartbeat(self, lease_id: str, caller: str) -> LeaseInfo:
        """Extend the lease by its window. Raises LeaseLostError when it is not in force."""
        lease = self.require(lease_id, caller)
        self._extend()
        return lease

    def require(self, lease_id: str, caller: str) -> LeaseInfo:
        """The lease in force if it is ``lease_id`` held by ``caller``. Raises LeaseLostError otherwise."""
        lease = self._lease
        if lease is None or self._expired():
            raise LeaseLostError("nobody holds control, or the lease has expired", "acquire control first")
        if not secrets.compare_digest(lease.id.encode(), lease_id.encode()) or lease.caller != caller:
            raise LeaseLostError(
                f"this lease is not in force, {lease.holder} holds control", "acquire control first"
            )
        return lease

    def release(self, lease_id: str, caller: str) -> None:
        """Give control back. Raises LeaseLostError when it is not in force."""
        lease = self.require(lease_id, caller)
        self._lease = None
        self._changed.set()
        _log.info("lease released holder=%s", lease.holder)

    async def watch(self) -> None:
        """Run for ever: wait for the lease to expire, then call ``on_lost`` and free it.

        The lease stays taken while ``on_lost`` runs, so that nobody can start a motion that the
        hold would then end.
        """
        while True:
            self._changed.clear()
            lease = self._lease
            if lease is None:
                await self._changed.wait()
                continue
            remaining_ns = self._expires_ns - self._clock.now_ns()
            if remaining_ns > 0:
                await _wait_at_most(self._changed, remaining_ns / 1e9)
                continue
            _log.warning("lease lost holder=%s", lease.holder)
            try:
                await self._on_lost(f"control lost: no heartbeat from {lease.holder}")
            finally:
                if self._lease is lease:
                    self._lease = None

    def _expired(self) -> bool:
        return self._clock.now_ns() >= self._expires_ns

    def _extend(self) -> None:
        self._expires_ns = self._clock.now_ns() + self._window_ns


async def _wait_at_most(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
