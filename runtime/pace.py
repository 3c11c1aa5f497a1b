"""How long answers take, and from when on one counts as lost and is asked for again.

The real-time client feeds it measured seconds, lockstep simulated ones.
"""

from __future__ import annotations

MOST_UNDER_WAY = 2
_GAIN = 1 / 8
_DEVIATION_GAIN = 1 / 4
_DEVIATIONS = 4.0


class Pace:
    """A smoothed round trip and its smoothed deviation, s, as TCP estimates them (RFC 6298).

    ``tick_s`` is the control period, the least that an answer may be late; ``longest_s`` the
    time-out of a request, and the wait before anything was measured.
    """

    def __init__(self, tick_s: float, longest_s: float) -> None:
        self._tick_s = tick_s
        self._longest_s = longest_s
        self._deviation_s = 0.0
        self.mean_s: float | None = None

    def forget(self) -> None:
        """Another server, or another way to it: nothing is known."""
        self.mean_s, self._deviation_s = None, 0.0

    def answered(self, round_trip_s: float) -> None:
        """An answer came after ``round_trip_s``."""
        if self.mean_s is None:
            self.mean_s, self._deviation_s = round_trip_s, round_trip_s / 2
            return
        off = round_trip_s - self.mean_s
        self._deviation_s += _DEVIATION_GAIN * (abs(off) - self._deviation_s)
        self.mean_s += _GAIN * off

    @property
    def overdue_s(self) -> float:
        """An answer that takes longer has probably been lost: RFC 6298's RTO, at least mean + tick."""
        if self.mean_s is None:
            return self._longest_s
        return min(self.mean_s + max(self._tick_s, _DEVIATIONS * self._deviation_s), self._longest_s)

    def may_ask(self, under_way: int, since_s: float) -> bool:
        """Whether to ask now, ``since_s`` after the newest of the ``under_way`` requests."""
        return under_way == 0 or (under_way < MOST_UNDER_WAY and since_s > self.overdue_s)
