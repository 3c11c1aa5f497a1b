"""The network between robot and policy server: a TCP connection that can be cut, slowed and garbled."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Literal

Mode = Literal["ok", "partitioned", "slow", "rubbish"]

SLOW_S = 1.0
_POLL_S = 0.02
_CHUNK = 65536


class Proxy:
    """Listens on a unix socket and forwards to a loopback port, in a thread of its own.

    ``partitioned`` passes nothing in either direction and closes nothing, as when a cable is out: what was
    under way arrives after it is back. ``slow`` delivers everything a second later. ``rubbish`` replaces the
    server's bytes by random ones; such a connection is closed at the first good ones.
    """

    def __init__(self, path: Path, port: int) -> None:
        self.mode: Mode = "ok"
        self._path, self._port = path, port
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="policy network", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._path.unlink(missing_ok=True)
        self._thread.start()
        self._ready.wait(5.0)

    def stop(self) -> None:
        """Close every connection."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)
        self._path.unlink(missing_ok=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_unix_server(self._accept, str(self._path)))
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.05))
        self._loop.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            there, back = await asyncio.open_connection("127.0.0.1", self._port)
            await asyncio.gather(self._pump(reader, back, False), self._pump(there, writer, True))
        writer.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, answers: bool) -> None:
        """Forward until either end closes; a chunk never overtakes the one before."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        delivery = asyncio.create_task(self._deliver(under_way, sink))
        spoilt = False
        try:
            while data := await source.read(_CHUNK):
                if answers and self.mode == "rubbish":
                    data, spoilt = os.urandom(len(data)), True
                elif spoilt:
                    break
                late_s = SLOW_S if self.mode == "slow" else 0.0
                under_way.put_nowait((time.monotonic() + late_s, data))
        except OSError:
            pass  # reset by an end that died
        under_way.put_nowait((0.0, b""))
        with contextlib.suppress(OSError):
            await delivery
        sink.close()

    async def _connected(self) -> None:
        while True:
            if self.mode != "partitioned":
                return
            await asyncio.sleep(_POLL_S)

    async def _deliver(
        self, under_way: asyncio.Queue[tuple[float, bytes]], sink: asyncio.StreamWriter
    ) -> None:
        while True:
            due, data = await under_way.get()
            if not data:
                return
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await self._connected()
            sink.write(data)
            await sink.drain()
