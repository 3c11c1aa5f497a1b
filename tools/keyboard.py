"""Single keys from the terminal, without Enter, and the terminal as it was afterwards.

The space bar and ``e`` are the e-stop wherever keys are read while an arm may move: they wait in no queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from typing import Literal

Key = Literal["next", "redo", "stop", "success", "failure", "keep"]

_ESCAPE_S = 0.05  # an escape sequence arrives in one piece; Escape itself stands alone
_SEQUENCES: dict[bytes, Key] = {
    b"\x1b[C": "next",
    b"\x1bOC": "next",
    b"\x1b[D": "redo",
    b"\x1bOD": "redo",
}
_LETTERS: dict[bytes, Key] = {
    b"n": "next",
    b"\r": "next",
    b"\n": "next",
    b"r": "redo",
    b"q": "stop",
    b"s": "success",
    b"f": "failure",
    b"k": "keep",
}
_EMERGENCY = b" eE"


class Keyboard:
    """Keys as they are pressed. Make it with ``keyboard()``; without a descriptor only ``press`` is one."""

    def __init__(self, descriptor: int = -1, emergency: Callable[[], None] | None = None) -> None:
        self._descriptor = descriptor
        self._emergency = emergency
        self._pressed: asyncio.Queue[Key] = asyncio.Queue()
        self._pending = b""
        self._flush: asyncio.TimerHandle | None = None

    async def next_key(self) -> Key:
        """Wait for a key that means something."""
        return await self._pressed.get()

    def press(self, key: Key) -> None:
        """As if ``key`` had been pressed."""
        self._pressed.put_nowait(key)

    def emergency(self) -> None:
        """As if the space bar had been pressed."""
        if self._emergency is not None:
            self._emergency()

    def forget(self) -> None:
        """Drop what was pressed while nobody asked."""
        while not self._pressed.empty():
            self._pressed.get_nowait()

    def feed(self) -> None:
        """The terminal has bytes."""
        try:
            data = os.read(self._descriptor, 64)
        except BlockingIOError:
            return
        if not data:  # the terminal is gone: as if stop were pressed
            asyncio.get_running_loop().remove_reader(self._descriptor)
            self._pressed.put_nowait("stop")
            return
        if self._emergency is not None and any(byte in _EMERGENCY for byte in data):
            self._emergency()
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        self._pending += data
        self._take()
        if self._pending:
            self._flush = asyncio.get_running_loop().call_later(_ESCAPE_S, self._take, True)

    def _take(self, complete: bool = False) -> None:
        """Turn pending bytes into keys; an unfinished escape sequence waits unless ``complete``."""
        while self._pending:
            if self._pending[:1] != b"\x1b":
                key = _LETTERS.get(self._pending[:1].lower())
                self._pending = self._pending[1:]
            elif len(self._pending) >= 3 and self._pending[1:2] in b"[O":
                key = _SEQUENCES.get(self._pending[:3])
                self._pending = self._pending[3:]
            elif not complete and (len(self._pending) == 1 or self._pending[1:2] in b"[O"):
                return
            else:
                key, self._pending = "stop", self._pending[1:]
            if key is not None:
                self._pressed.put_nowait(key)


@contextlib.contextmanager
def keyboard(emergency: Callable[[], None] | None = None) -> Iterator[Keyboard]:
    """Listen to the terminal on stdin within a running event loop; it is restored however this ends.

    ``emergency`` is called at once when the space bar or ``e`` is pressed, whoever waits for keys.
    """
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    loop = asyncio.get_running_loop()
    keys = Keyboard(descriptor, emergency)
    try:
        tty.setcbreak(descriptor)  # Ctrl-C stays a signal
        loop.add_reader(descriptor, keys.feed)
        yield keys
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
