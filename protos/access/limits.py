"""How often one caller may call: a token bucket for each, in bounded memory."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from protos.access.errors import TooFastError

_MAX_CALLERS = 1024


class RateLimit:
    """``per_s`` calls a second for each caller, ``burst`` of them at once."""

    def __init__(self, per_s: float, burst: float, now: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._burst = burst
        self._now = now
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self.refused = 0

    def has_left(self, caller: str) -> bool:
        """Whether the caller has a call left; counts nothing."""
        return self._left(caller, self._now()) >= 1.0

    def take(self, caller: str) -> None:
        """Count one call. Raises TooFastError when the caller has none left."""
        now = self._now()
        left = self._left(caller, now)
        self._buckets.pop(caller, None)
        allowed = left >= 1.0
        self._buckets[caller] = (left - 1.0 if allowed else left, now)
        while len(self._buckets) > _MAX_CALLERS:
            self._buckets.popitem(last=False)  # longest silent, and so full again anyway
        if not allowed:
            self.refused += 1
            raise TooFastError(f"{caller} calls more than {self._per_s:g} times a second", "slow down")

    def _left(self, caller: str, now: float) -> float:
        left, then = self._buckets.get(caller, (self._burst, now))
        return min(self._burst, left + (now - then) * self._per_s)
