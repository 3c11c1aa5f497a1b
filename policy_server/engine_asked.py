"""A question to an engine process that is under way, watched by the event loop itself.

A thread that waits for the answer has to be woken, and wakes the loop: a fifth of a millisecond each on a
machine whose cores sleep meanwhile, as they do in every other tick of an arm.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

from policy_server.engine_wire import Message, parse
from policy_server.hanging import FIRST_LOOK_S, LIMIT_S, LOOK_S, Patience

_BLOCK = 2**16


class Asked:
    """Reads the answer from a socket that never waits; calls ``done`` once, with it or why there is none."""

    def __init__(
        self, end: socket.socket, patience: Callable[[], Patience], done: Callable[[Message | str], None]
    ) -> None:
        """``patience`` is made when the answer is not there at once."""
        self._loop = asyncio.get_running_loop()
        self._end = end
        self._make_patience = patience
        self._patience: Patience | None = None
        self._done = done
        self._data = bytearray()
        self._begin_s = time.monotonic()
        self._loop.add_reader(end.fileno(), self._read)
        self._timer = self._loop.call_later(FIRST_LOOK_S, self._look)

    def cancel(self) -> None:
        """Listen no more; ``done`` is not called. Safe to call twice."""
        self._loop.remove_reader(self._end.fileno())
        self._timer.cancel()

    def _read(self) -> None:
        try:
            block = self._end.recv(_BLOCK)
        except BlockingIOError:
            return
        except OSError:
            block = b""
        self._data += block
        try:
            message = parse(self._data)
        except ValueError as error:
            self._finish(f"said what is no answer ({error})")
            return
        if message is not None:
            self._finish(message)
        elif not block:
            self._finish("is gone")

    def _look(self) -> None:
        self._timer = self._loop.call_later(LOOK_S, self._look)
        waited_s = time.monotonic() - self._begin_s
        try:
            if self._patience is None:
                self._patience = self._make_patience()
            reason = self._patience.reason(waited_s)
        except OSError:  # nothing to look with, no descriptor is left say: the next look may have it
            reason = f"did not answer within {LIMIT_S:.0f} s" if waited_s >= LIMIT_S else None
        if reason is not None:
            self._finish(reason)

    def _finish(self, reply: Message | str) -> None:
        self.cancel()
        self._done(reply)
