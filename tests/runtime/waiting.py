"""Waiting for something to become true, with a generous limit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def eventually(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Return once ``condition()`` is truthy. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (what is waited for offers no event)
            await asyncio.sleep(0.01)
