"""The bounded queue between whoever records and the thread with the disk.

Putting costs a lock and an append and never waits, unless asked to. What does not fit is counted
per stream: a drop is recorded, never silent.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from episodes.spec import DropCount

Take = Callable[[], None]


class Backlog:
    """Work waiting for the writer's thread, bounded in items and bytes."""

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._items: deque[tuple[int, Take]] = deque()
        self._bytes = 0
        self._drops: dict[str, DropCount] = {}
        self.wake = threading.Event()
        """Set when the thread should look before its group is due."""

    def put(self, size: int, take: Take) -> bool:
        """Queue work on ``size`` bytes; False when full. An empty queue takes anything."""
        with self._lock:
            waiting = len(self._items)
            if waiting and (waiting >= self._max_items or self._bytes + size > self._max_bytes):
                return False
            self._bytes += size
            self._items.append((size, take))
        if waiting * 2 > self._max_items:
            self.wake.set()
        return True

    def put_always(self, take: Take) -> None:
        """Queue something small that must not be lost (a flag, an intervention)."""
        with self._lock:
            self._items.append((0, take))

    def take_one(self) -> None:
        """Do the oldest piece of work; its bytes are free again after that."""
        with self._lock:
            size, take = self._items.popleft()
        take()
        with self._lock:
            self._bytes -= size

    def count_drop(self, name: str, t_ns: int) -> None:
        """A sample of ``name`` taken at ``t_ns`` was not recorded."""
        with self._lock:
            old = self._drops.get(name)
            first = old.first_ns if old else t_ns
            self._drops[name] = DropCount(count=old.count + 1 if old else 1, first_ns=first, last_ns=t_ns)

    def drops(self) -> dict[str, DropCount]:
        """Drops so far, per stream or camera."""
        with self._lock:
            return dict(self._drops)

    def __len__(self) -> int:
        return len(self._items)
