"""One thread that runs the policy, and the event loop's side of it: what runs next, and with what.

One thread, because a session is not thread-safe and because two inferences at once on a small machine
only make both late. The event loop stays free for health checks, loads and swaps; so does the
thread, which is never handed more than one batch.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from policy_server.batch import Answer, BatchRunner, Observed, Outcome
from policy_server.clients import Client, Clients
from policy_server.errors import (
    ExpiredError,
    InferenceError,
    NothingServingError,
    OverloadedError,
)
from policy_server.schedule import Job, Schedule
from policy_server.slots import BundleSlots, Serving
from policy_server.spec import Inputs

_RECENT = 1024
_PROBE_NS = 10**9
_LINGER_MARGIN_NS = 2_000_000


class Counters:
    """What became of the requests; written by the event loop only."""

    def __init__(self) -> None:
        self.served = 0
        self.failed = 0
        self.dropped = 0
        self.refused = 0
        self._exec_ms: deque[float] = deque(maxlen=_RECENT)

    def answered(self, exec_ms: float) -> None:
        """Count an answer and its execution time."""
        self.served += 1
        self._exec_ms.append(exec_ms)

    def percentile(self, q: float) -> float:
        """Execution time over the last 1024 answers, ms; 0 before the first."""
        return float(np.percentile(self._exec_ms, q)) if self._exec_ms else 0.0


class InferenceWorker:
    """Runs what waits, in the order of `Schedule`, on whatever `slots` is serving when its turn comes.

    Make it within a running event loop; `start` before the first request.
    """

    def __init__(self, slots: BundleSlots, clients: Clients, max_waiting: int, max_linger_ms: float) -> None:
        self._slots = slots
        self._clients = clients
        self._max_linger_ns = round(max_linger_ms * 1e6)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self._schedule: Schedule[Answer] = Schedule(max_waiting)
        self._running: list[Job[Answer]] = []
        self._arrived = asyncio.Event()
        self._dispatcher: asyncio.Task[None] | None = None
        self._ran_ns = 0
        self._runner = BatchRunner()
        self.counters = Counters()
        #: Called with what was run and what came of it, once the answers have gone out.
        self.watch: Callable[[Serving, list[Job[Answer]], list[Outcome]], Awaitable[None]] | None = None

    @property
    def pending(self) -> int:
        """Requests waiting or being computed."""
        return len(self._schedule) + len(self._running)

    @property
    def waiting(self) -> int:
        """Requests waiting for their turn."""
        return len(self._schedule)

    def start(self) -> None:
        """Begin to answer. Safe to call twice."""
        if self._dispatcher is None:
            self._dispatcher = asyncio.get_running_loop().create_task(self._dispatch())

    async def infer(self, client: Client, inputs: Inputs, deadline_ns: int) -> Answer:
        """Answer a checked request, unless it can't be ready by its deadline (monotonic ns).

        Raises OverloadedError, ExpiredError, NothingServingError, InferenceError or LaneError.
        """
        self.start()
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        job = Job(client, inputs, deadline_ns, time.monotonic_ns(), future)
        self._admit(job)
        try:
            return await future
        finally:
            self._schedule.remove(job)  # given up, maybe

    async def ping(self) -> None:
        """Return once the thread has come round to it: proof that it is not stuck.

        Raises what ended the dispatcher, if something did: nothing would be answered any more.
        """
        if self._dispatcher is not None and self._dispatcher.done():
            await self._dispatcher
        await asyncio.get_running_loop().run_in_executor(self._thread, lambda: None)

    async def stop(self) -> None:
        """Give up what is waiting. Safe to call twice."""
        dispatcher, self._dispatcher = self._dispatcher, None
        if dispatcher is not None:
            dispatcher.cancel()
            await asyncio.wait([dispatcher])

    def close(self) -> None:
        """Let the running inference end, and the thread with it."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _admit(self, job: Job[Answer]) -> None:
        excess = self._schedule.add(job)
        if excess is not None:
            _settle(
                excess,
                OverloadedError(
                    f"{self.pending} requests are waiting already; ask again when one is answered"
                ),
            )
        self._arrived.set()

    async def _dispatch(self) -> None:
        """Choose, run, answer, for ever."""
        try:
            while True:
                await self._wait_for_work()
                serving = self._slots.serving  # one read: a swap happens between batches, never within one
                self._expire(serving)
                if serving is None or not len(self._schedule):
                    continue
                costs = serving.slot.costs
                self._running = self._schedule.choose(time.monotonic_ns(), costs.fit, costs.expected_ns)
                await self._run(serving)
        finally:
            for job in self._running + self._schedule.clear():
                _settle(job, InferenceError("the policy server is stopping; ask again when it is back"))
            self._running = []

    async def _wait_for_work(self) -> None:
        """Return when something should run: at once, or when a batch is full or may not wait longer."""
        while not len(self._schedule):
            self._arrived.clear()
            await self._arrived.wait()
        while (linger_s := self._linger_ns() / 1e9) > 0:
            self._arrived.clear()
            try:
                async with asyncio.timeout(linger_s):
                    await self._arrived.wait()
            except TimeoutError:
                return

    def _linger_ns(self) -> int:
        """How long it is worth waiting for others to share a run with; 0: not at all.

        Never when batching does not pay, when everybody who asks regularly is here already, or when the
        larger batch would endanger the earliest deadline.
        """
        serving, waiting = self._slots.serving, len(self._schedule)
        if serving is None or not 0 < waiting < serving.slot.costs.limit:
            return 0
        now = time.monotonic_ns()
        if not self._clients.expected(now):
            return 0
        costs = serving.slot.costs
        longest = min(self._max_linger_ns, costs.expected_ns(1))
        spare = self._schedule.earliest_ns - now - costs.expected_ns(costs.limit) - _LINGER_MARGIN_NS
        return max(min(self._schedule.oldest_ns + longest - now, spare), 0)

    def _expire(self, serving: Serving | None) -> None:
        now = time.monotonic_ns()
        fastest = serving.slot.costs.fastest_ns() if serving else 0
        if now - self._ran_ns > _PROBE_NS:
            fastest = 0  # what was true a while ago may not be: try one, and measure again
        for job in self._schedule.expire(now, fastest):
            _settle(
                job,
                ExpiredError(
                    "the deadline is before the end of the request's turn; the server is too slow for it"
                ),
            )
        if serving is None:
            for job in self._schedule.clear():
                _settle(job, NothingServingError("no bundle is loaded; load one"))

    async def _run(self, serving: Serving) -> None:
        jobs, loop = self._running, asyncio.get_running_loop()
        outcomes = await loop.run_in_executor(self._thread, self._runner.run, jobs, serving)
        self._running, self._ran_ns = [], time.monotonic_ns()
        first = next((outcome for outcome in outcomes if isinstance(outcome, Answer)), None)
        if first is not None:
            serving.slot.costs.ran(first.batch, first.exec_ms)
        for job, outcome in zip(jobs, outcomes, strict=True):
            _settle(job, outcome)
        if self.watch is not None:
            await self.watch(serving, jobs, outcomes)

    async def observed(self, row: int) -> Observed:
        """A copy of one observation of the last run; only while that is what ran last, in ``watch``."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._runner.observed, row)


def _settle(job: Job[Answer], outcome: Outcome) -> None:
    """Tell whoever waits for it; nobody does when the request was given up."""
    if job.answer.done():
        return
    if isinstance(outcome, Answer):
        job.answer.set_result(outcome)
    else:
        job.answer.set_exception(outcome)
