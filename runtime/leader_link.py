"""Leader to follower without the loop between: the leader's samples become waypoints at servo rate.

The loop says thirty times a second that the leader arm may drive, and for how long; in between, the
follower's bus process takes each fresh sample from the leader's state ring itself. When the loop is
late, stops or dies, its word expires and the following ends by itself. What comes out are waypoints
like any others: the servo core and the guard judge every one.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from runtime.bus_records import STATE, Fault
from runtime.errors import RingError
from runtime.nouns import Vector, Waypoint
from runtime.ring import RingReader
from runtime.streams import NS

log = logging.getLogger(__name__)

FRESH_NS = NS // 5
"""A leader that was not measured for longer no longer drives."""

SEQ_ROOM = 1 << 12
"""Waypoints that the link may make of one word of the loop: two seconds at 1 kHz and more."""

_LONGEST_STEP_NS = NS // 30


class LeaderLink:
    """Follows the leader's state ring ``path`` while it may. Not thread-safe; never raises."""

    def __init__(self, path: Path, period_ns: int) -> None:
        self._path = path
        self._period_ns = period_ns
        self._ring: RingReader | None = None
        self._word: Waypoint | None = None
        self._told = False
        self._made = 0
        self._head = 0
        self._measured_ns = -1
        self._target_ns = 0
        self.updates = 0
        """Waypoints made since the process began."""

    @property
    def following(self) -> bool:
        """The loop's word is out; it may have expired meanwhile."""
        return self._word is not None

    def follow(self, word: Waypoint) -> bool:
        """Follow the leader until ``word`` expires; False when its ring cannot be read."""
        if self._ring is None:
            try:
                self._ring = RingReader(self._path, STATE)
            except RingError as error:
                if not self._told:
                    log.warning("the leader is followed at tick rate only: %s", error)
                self._told = True
                return False
        if self._word is None:
            self._head, self._measured_ns = 0, -1
        elif word.seq <= self._word.seq:
            return True
        self._word, self._made = word, 0
        return True

    def end(self) -> None:
        """Whatever the leader does from here on is nobody's command."""
        self._word = None

    def waypoint(self, now_ns: int) -> Waypoint | None:
        """What a fresh sample asks for; None without one, or when the loop's word has expired.

        The follower is to be there as long after ``now_ns`` as the leader took for it, but at least one
        period: a sample that comes a cycle late then finds the follower still on its way.
        """
        word = self._word
        if word is None or self._ring is None:
            return None
        if now_ns >= word.expires_ns:
            self._word = None
            return None
        sample = self._fresh(self._ring, now_ns)
        if sample is None:
            return None
        position, measured_ns, step_ns = sample
        self._made += 1
        self.updates += 1
        self._measured_ns = measured_ns
        self._target_ns = now_ns + min(max(step_ns, self._period_ns), _LONGEST_STEP_NS)
        return Waypoint(
            position=position,
            target_ns=self._target_ns,
            expires_ns=min(measured_ns + FRESH_NS, word.expires_ns),
            source=word.source,
            seq=word.seq * SEQ_ROOM + min(self._made, SEQ_ROOM - 1),
        )

    def latency_ns(self, written_ns: int) -> int:
        """From the leader's measurement until the follower's goal, written at ``written_ns``, is that pose.

        The guard's limits may make a far goal later.
        """
        return max(written_ns, self._target_ns) - self._measured_ns

    def _fresh(self, ring: RingReader, now_ns: int) -> tuple[Vector, int, int] | None:
        """A sample not seen yet: position rad (6,), when it was measured, time since the one before."""
        head = ring.head
        if head == self._head:
            return None
        newest = ring.latest()
        if newest is None:
            return None
        index, record = newest
        self._head = index + 1
        measured_ns = int(record["t_ns"]) - int(np.max(record["age_ns"]))
        if int(record["fault"]) != Fault.NONE or measured_ns <= self._measured_ns:
            return None
        if not 0 <= now_ns - measured_ns <= FRESH_NS:
            return None
        step_ns = measured_ns - self._measured_ns if self._measured_ns >= 0 else self._period_ns
        return record["position"].copy(), measured_ns, step_ns
