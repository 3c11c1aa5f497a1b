"""Waiting for something to become true, with a generous limit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

WAIT_S = 20.0


async def eventually(condition: Callable[[], object], timeout_s: float = WAIT_S) -> None:
    """Return once ``condition()`` is truthy. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (what is waited for offers no event)
            await asyncio.sleep(0.01)


def until(condition: Callable[[], object], what: str) -> None:
    """As ``eventually``, where no event loop runs. Raises AssertionError that names ``what``."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WAIT_S:g} s: {what}"
        time.sleep(0.005)
