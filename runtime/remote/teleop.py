"""How fresh remote teleoperation is: late goals are refused, silence means hold."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from hal.clock import Clock
from runtime.remote.errors import RefusedError

OnStale = Callable[[str], Awaitable[None]]


class TeleopFreshness:
    """Watches one teleoperation session from the first goal taken to the hold that ends it.

    ``arm`` is called when the mode becomes teleop. From the first goal on, the newest goal may be
    at most ``stale_s`` old, counting the age it arrived with; then ``on_stale`` is called once and
    every further goal is refused until ``arm`` is called again, so that a stream that comes back
    cannot make the arm jump.
    """

    def __init__(self, stale_s: float, clock: Clock, on_stale: OnStale) -> None:
        self.stale_ns = round(stale_s * 1e9)
        self._clock = clock
        self._on_stale = on_stale
        self._armed = False
        self._fresh_until_ns: int | None = None
        self._changed = asyncio.Event()

    def arm(self) -> None:
        """Allow goals again; the watch starts with the first one."""
        self._armed = True
        self._fresh_until_ns = None

    def disarm(self) -> None:
        """Refuse goals until armed again."""
        self._armed = False
        self._fresh_until_ns = None

    @property
    def active(self) -> bool:
        """True while a stream of goals is moving the arm."""
        return self._armed and self._fresh_until_ns is not None

    def take(self, age_ns: int) -> None:
        """Account for a goal that is ``age_ns`` old. Raises RefusedError when it is too old or not armed."""
        if not self._armed:
            raise RefusedError("teleoperation is not armed", "set the mode to teleop (again)")
        if age_ns < 0 or age_ns > self.stale_ns:
            raise RefusedError(
                f"the goal is {age_ns / 1e6:.0f} ms old", f"at most {self.stale_ns / 1e6:.0f} ms counts"
            )
        first = self._fresh_until_ns is None
        self._fresh_until_ns = self._clock.now_ns() + self.stale_ns - age_ns
        if first:
            self._changed.set()

    async def watch(self) -> None:
        """Run for ever: call ``on_stale`` each time an active stream falls silent."""
        while True:
            until_ns = self._fresh_until_ns
            if until_ns is None:
                self._changed.clear()
                await self._changed.wait()
                continue
            remaining_ns = until_ns - self._clock.now_ns()
            if remaining_ns > 0:
                await asyncio.sleep(remaining_ns / 1e9)
                continue
            self.disarm()
            await self._on_stale("teleoperation stale: no fresh goal")
