"""A pedal or button that is no keyboard: a program's output or a FIFO, a word a line.

The words are the keys' names: ``next``, ``redo``, ``stop``, ``success``, ``failure``, ``keep``, and
``estop``. An empty line is ``next``, so that a switch which can only say that it was pressed will do. A
pedal that poses as a keyboard needs none of this.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast, get_args

from tools.console import say
from tools.errors import UsageError
from tools.keyboard import Key, Keyboard

_LINE_LIMIT = 1024


@contextlib.asynccontextmanager
async def pedal(source: str | None, keys: Keyboard | None) -> AsyncIterator[None]:
    """Press ``keys`` for each line of ``source``: the path of a FIFO, or a command. Raises UsageError."""
    if source is None or keys is None:
        yield
        return
    task = asyncio.create_task(
        _read_fifo(_open_fifo(source), keys) if _is_fifo(source) else _run(source, keys)
    )
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def press(line: bytes, keys: Keyboard) -> None:
    """One line of the source; a word that means nothing is said and ignored."""
    word = line.decode(errors="replace").strip().lower() or "next"
    if word == "estop":
        keys.emergency()
    elif word in get_args(Key):
        keys.press(cast(Key, word))
    else:
        say(f"the button says {word[:40]!r}; it may say {', '.join(get_args(Key))}, estop")


def _is_fifo(source: str) -> bool:
    path = Path(source)
    return path.exists() and stat.S_ISFIFO(path.stat().st_mode)


def _open_fifo(source: str) -> int:
    # For writing too: the pedal's program may come and go without an end of file.
    return os.open(source, os.O_RDWR | os.O_NONBLOCK)


async def _read_fifo(descriptor: int, keys: Keyboard) -> None:
    reader = asyncio.StreamReader(limit=_LINE_LIMIT)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", buffering=0)
    )
    try:
        await _lines(reader, keys)
    finally:
        transport.close()


async def _run(command: str, keys: Keyboard) -> None:
    process = await asyncio.create_subprocess_shell(
        command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, limit=_LINE_LIMIT
    )
    assert process.stdout is not None
    try:
        await _lines(process.stdout, keys)
        say(f"the button's program ended with {await process.wait()}; the keyboard still works")
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def _lines(reader: asyncio.StreamReader, keys: Keyboard) -> None:
    while True:
        try:
            line = await reader.readline()
        except ValueError:  # a line beyond the limit: not a word of ours
            continue
        if not line:
            return
        press(line, keys)


def check_source(source: str | None) -> None:
    """Raises UsageError for a path that is there and no FIFO."""
    if source is not None and Path(source).exists() and not _is_fifo(source):
        if os.access(source, os.X_OK) and Path(source).is_file():
            return
        raise UsageError(f"{source} is neither a FIFO nor a program; make a FIFO with `mkfifo {source}`")
