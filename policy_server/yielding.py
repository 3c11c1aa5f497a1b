"""Engines at work behind the serving one stand still while it computes.

Niceness decides who gets a core, not who gets the caches and the memory's bandwidth, and loading a
large graph uses both: it made inference half as slow again on the other core. So what loads, and what
shadows, is stopped (SIGSTOP) for the milliseconds that a request is computed in.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

#: Of the time since it began; beyond it a load goes on beside the requests, else it might never end.
_MOST = 0.75
_SHORT_S = 0.003  # a computation that is over sooner is not worth two signals


class _Work:
    """One engine at work behind the others."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.begun = time.monotonic()
        self.stood_s = 0.0

    def may_stand(self) -> bool:
        """Whether it has had its share of time."""
        return self.stood_s <= _MOST * (time.monotonic() - self.begun)


class Behind:
    """Which engines work behind the serving one. One for all engines of a server."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._work: dict[int, _Work] = {}
        self._last_s = 1.0

    @contextlib.contextmanager
    def working(self, pid: int) -> Iterator[None]:
        """What ``pid`` does inside gives way to what is served."""
        with self._lock:
            self._work[pid] = _Work(pid)
        try:
            yield
        finally:
            with self._lock:
                del self._work[pid]
                _signal(pid, signal.SIGCONT)

    @contextlib.contextmanager
    def stand_still(self) -> Iterator[None]:
        """While a request is computed; what has stood too long already goes on."""
        begin = time.monotonic()
        if not self._work or self._last_s < _SHORT_S:
            yield
            self._last_s = time.monotonic() - begin
            return
        with self._lock:
            stopped = [work for work in self._work.values() if work.may_stand()]
            for work in stopped:
                _signal(work.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            self._last_s = time.monotonic() - begin
            with self._lock:
                for work in stopped:
                    work.stood_s += self._last_s
                    _signal(work.pid, signal.SIGCONT)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # ended, and waited for
        os.kill(pid, number)
