"""Threads that check and decode requests with JPEGs, each under its request's deadline.

A decoder cannot be interrupted, so nobody depends on one coming back: who waits is answered at the
deadline, what has not been begun by then never is, and the threads do not keep the process alive.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

from policy_server.errors import ExpiredError, InferenceError
from policy_server.spec import Inputs

log = logging.getLogger(__name__)

#: How long closing waits for pictures that are being decoded, in all; one takes milliseconds.
CLOSE_S = 1.0


class Decoders:
    """``threads`` threads; first come, first served. Use `run` within one event loop."""

    def __init__(self, threads: int) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"decoder-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    async def run(self, decode: Callable[[], Inputs], deadline_ns: int) -> Inputs:
        """What ``decode`` returns or raises; raises ExpiredError at the deadline (monotonic ns).

        Raises InferenceError once closed.
        """
        job = _Job(decode, deadline_ns)
        with self._changed:
            if self._closed:
                raise InferenceError("the policy server is stopping; ask again when it is back")
            self._waiting.append(job)
            self._changed.notify()
        try:
            async with asyncio.timeout(max(deadline_ns - time.monotonic_ns(), 0) / 1e9):
                return await asyncio.wrap_future(job.result)
        except TimeoutError:
            raise _expired() from None
        finally:
            with self._changed:
                if job in self._waiting:  # given up
                    self._waiting.remove(job)
            del job  # what was raised has this frame, and the job has what was raised

    def close(self) -> None:
        """Give up what waits, and wait up to a second for what is being decoded. Safe to call twice."""
        with self._changed:
            self._closed = True
            given_up = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        for job in given_up:
            job.result.cancel()
        end = time.monotonic() + CLOSE_S
        for thread in self._threads:
            thread.join(max(end - time.monotonic(), 0.0))
        busy = sum(thread.is_alive() for thread in self._threads)
        if busy:
            log.warning("decoders.left_behind threads=%d", busy)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting)
                if self._closed:
                    return
                job = self._waiting.popleft()
            job.run()
            del job  # or an idle thread keeps a request


class _Job:
    """One request: how it is decoded, and by when."""

    def __init__(self, decode: Callable[[], Inputs], deadline_ns: int) -> None:
        self._decode = decode
        self._deadline_ns = deadline_ns
        self.result: Future[Inputs] = Future()

    def run(self) -> None:
        """Decode, unless nobody waits for it any more."""
        if not self.result.set_running_or_notify_cancel():
            return
        try:
            if time.monotonic_ns() >= self._deadline_ns:
                raise _expired()
            self.result.set_result(self._decode())
        except BaseException as error:  # noqa: BLE001 (raised where the result is awaited)
            self.result.set_exception(error)
            del self  # as above


def _expired() -> ExpiredError:
    return ExpiredError("the deadline passed while the request's pictures were decoded or waited for it")
