"""Answers to one client's stream: in its order, some at once, never more than it reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

Q = TypeVar("Q")
R = TypeVar("R")


async def in_order(
    requests: AsyncIterator[Q], answer: Callable[[Q], Awaitable[R]], window: int, idle_s: float
) -> AsyncGenerator[R, None]:
    """Answer each request in a task of its own and yield the answers in request order.

    At most ``window`` requests are taken in whose answers were not taken away: a client that does not
    read is not read from either. Ends with the requests, or when none comes for ``idle_s``.
    """
    room = asyncio.Semaphore(window)
    answers: asyncio.Queue[asyncio.Future[R] | None] = asyncio.Queue()
    under_way: set[asyncio.Future[R]] = set()

    async def read() -> None:
        try:
            while True:
                await room.acquire()
                try:
                    async with asyncio.timeout(idle_s):
                        request = await anext(requests)
                except (StopAsyncIteration, TimeoutError):
                    return
                task = asyncio.ensure_future(answer(request))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
                answers.put_nowait(task)
        finally:
            answers.put_nowait(None)

    reader = asyncio.ensure_future(read())
    try:
        while (task := await answers.get()) is not None:
            yield await task
            room.release()
        await reader
    finally:
        left: list[asyncio.Future[Any]] = [reader, *under_way]
        for future in left:
            future.cancel()
        await asyncio.gather(*left, return_exceptions=True)
