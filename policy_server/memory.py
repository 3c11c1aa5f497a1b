"""What a server remembers goes to disk in a thread: nobody who is served waits for a disk."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from policy_server.standing import Standing, write_standing

log = logging.getLogger(__name__)


class Memory:
    """The file of a `Standing`; none without a path. Writes are in order."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="standing")

    async def keep(self, standing: Standing) -> None:
        """Have it on disk as it is now; the disk's trouble is logged and does not stop the serving."""
        if self._path is None:
            return
        begin, text = time.perf_counter(), standing.model_dump_json()
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, write_standing, self._path, text)
        except OSError as error:
            log.error("memory.not_saved path=%s reason=%s", self._path, error)
        log.debug("memory.saved ms=%.1f", (time.perf_counter() - begin) * 1e3)

    def close(self) -> None:
        """Finish what is to be written."""
        self._thread.shutdown(wait=True)
