"""The robot's processes as the kernel lists them, and what can be done to them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

STOP_S = 0.5


def processes(*words: str) -> list[int]:
    """Ids of the running processes whose command line contains all ``words``."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z" and all(word in command for word in words):
                found.append(int(entry.name))
    return found


def threads(pid: int) -> set[int]:
    """Ids of a process's threads."""
    return {int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()}


def kill(pid: int) -> None:
    """SIGKILL."""
    os.kill(pid, signal.SIGKILL)


@contextlib.asynccontextmanager
async def stopped(pid: int, seconds: float = STOP_S) -> AsyncIterator[None]:
    """SIGSTOP, and SIGCONT after ``seconds``; the block begins then."""
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        os.kill(pid, signal.SIGCONT)
    yield
