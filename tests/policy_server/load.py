"""Clients that ask a server all the time, and what they were answered."""

from __future__ import annotations

import asyncio
from typing import Any

import tiny


class Load:
    """Asks from now on; every answer is kept as (version, epoch, first action, rad)."""

    def __init__(self, stub: Any, clients: int = 1, pause_s: float = 0.0) -> None:
        self.answers: list[tuple[str, int, float]] = []
        self._stub = stub
        self._pause_s = pause_s
        self._stopping = False
        self._answered = asyncio.Event()
        self._tasks = [asyncio.create_task(self._ask()) for _ in range(clients)]

    @property
    def versions(self) -> list[str]:
        """Who answered, in order."""
        return [version for version, _, _ in self.answers]

    async def more(self, n: int) -> None:
        """Wait until ``n`` more answers came. Raises TimeoutError."""
        goal = len(self.answers) + n
        async with asyncio.timeout(20):
            while len(self.answers) < goal:
                self._answered.clear()
                await self._answered.wait()

    async def stop(self) -> None:
        """Raises what a request failed with."""
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def _ask(self) -> None:
        tick = 0
        while not self._stopping:
            tick += 1
            reply = await self._stub.Infer(tiny.make_request(tick), timeout=20)
            self.answers.append((reply.version, reply.epoch, float(tiny.actions(reply)[0, 0])))
            self._answered.set()
            await asyncio.sleep(self._pause_s)
