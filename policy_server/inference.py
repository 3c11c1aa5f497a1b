"""One thread that runs the policy, and the event loop's side of it: what runs next, and with what.

One thread, because a session is not thread-safe and because two inferences at once on a small machine
only make both late. The event loop stays free for health checks, loads and swaps; so does the
thread, which is never handed more than one batch.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np

from policies.errors import PolicyError
from policy_server.batch import Answer, BatchRunner, Observed, Outcome, bug, failure
from policy_server.clients import Client, Clients
from policy_server.costs import BatchCosts
from policy_server.errors import (
    ExpiredError,
    InferenceError,
    LaneError,
    NothingServingError,
    OverloadedError,
    ServerError,
)
from policy_server.in_place import Begun, begin
from policy_server.schedule import Job, Schedule
from policy_server.slots import BundleSlots, Serving
from policy_server.spec import Inputs

log = logging.getLogger(__name__)

Watch = Callable[[Serving, list[Job[Answer]], list[Outcome]], Awaitable[None]]

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


class _Arrivals:
    """How long it is from one request to the next, smoothed, ns."""

    def __init__(self) -> None:
        self.gap_ns = float("inf")
        self._last_ns = 0

    def note(self, now_ns: int) -> None:
        gap, self._last_ns = min(now_ns - self._last_ns, 10**9), now_ns
        self.gap_ns = gap if self.gap_ns == float("inf") else self.gap_ns + (gap - self.gap_ns) / 8


class InferenceWorker:
    """Runs what waits, in the order of `Schedule`, on whatever `slots` is serving when its turn comes.

    Use it within one event loop. What runs next is decided where it becomes possible, when a request
    comes or a run ends, without a task in between: each hand-over to somebody who sleeps costs as
    much as a copied picture.
    """

    def __init__(self, slots: BundleSlots, clients: Clients, max_waiting: int, max_linger_ms: float) -> None:
        self._slots = slots
        self._clients = clients
        self._max_linger_ns = round(max_linger_ms * 1e6)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self._schedule: Schedule[Answer] = Schedule(max_waiting)
        self._running: list[Job[Answer]] = []
        self._begun: Begun | None = None  # a run in place
        self._watching: asyncio.Task[None] | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._stopped = False
        self._ran_ns = 0
        self._arrivals = _Arrivals()
        self._runner = BatchRunner()
        self.counters = Counters()
        #: Called with what was run and what came of it, once the answers have gone out.
        self.watch: Watch | None = None

    @property
    def pending(self) -> int:
        """Requests waiting or being computed."""
        return len(self._schedule) + len(self._running)

    @property
    def waiting(self) -> int:
        """Requests waiting for their turn."""
        return len(self._schedule)

    async def infer(self, client: Client, inputs: Inputs, deadline_ns: int) -> Answer:
        """Answer a checked request, unless it can't be ready by its deadline (monotonic ns).

        Raises OverloadedError, ExpiredError, NothingServingError, InferenceError or LaneError.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        job = Job(client, inputs, deadline_ns, time.monotonic_ns(), future)
        self._arrivals.note(job.queued_ns)
        excess = self._schedule.add(job)
        if excess is not None:
            waiting = f"{self.pending} requests are waiting already; ask again when one is answered"
            _settle(excess, OverloadedError(waiting))
        self._next()
        try:
            async with asyncio.timeout(max(deadline_ns - time.monotonic_ns(), 0) / 1e9):
                return await future
        except TimeoutError:
            raise ExpiredError(_late(job in self._running)) from None
        finally:
            self._schedule.remove(job)  # given up, maybe

    async def ping(self) -> None:
        """Return once the thread has come round to it: proof that it is not stuck."""
        await asyncio.get_running_loop().run_in_executor(self._thread, lambda: None)

    async def observed(self, row: int) -> Observed:
        """A copy of one observation of the last run; only while that is what ran last, in ``watch``.

        Raises LaneError when its pictures are not there any more.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._runner.observed, row)

    def stop(self) -> None:
        """Give up what is waiting and take nothing more. Safe to call twice."""
        self._stopped = True
        self._cancel_linger()
        if self._begun is not None:
            self._begun.stop()
            self._begun = None
        self._refuse_all(InferenceError("the policy server is stopping; ask again when it is back"))

    def close(self) -> None:
        """Let the running inference end, and the thread with it."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _next(self) -> None:
        """Run the next batch, if there is one, nothing runs, and waiting for others would not pay."""
        if self._running or self._watching is not None or not len(self._schedule):
            return
        self._cancel_linger()
        serving = self._slots.serving  # one read: a swap happens between batches, never within one
        if self._stopped or serving is None:
            self._refuse_all(NothingServingError("no bundle is loaded; load one"))
            return
        loop = asyncio.get_running_loop()
        linger_ns = self._linger_ns(serving.slot.costs)
        if linger_ns > 0:
            self._linger = loop.call_later(linger_ns / 1e9, self._next)
            return
        self._expire(serving.slot.costs)
        costs = serving.slot.costs
        self._running = self._schedule.choose(time.monotonic_ns(), costs.fit, costs.expected_ns)
        if self._running:
            self._begin(serving)

    def _begin(self, serving: Serving) -> None:
        """Run what was chosen: a single job without the thread, if it can be; each hand-over costs."""
        if len(self._running) == 1:
            ended = partial(self._ended_in_place, serving)
            try:
                self._begun = begin(self._running[0], serving, ended)
            except LaneError as error:
                asyncio.get_running_loop().call_soon(ended, error)
                return
            except PolicyError as error:
                asyncio.get_running_loop().call_soon(ended, failure(serving, error))
                return
            except Exception as error:  # noqa: BLE001 (whatever it is, the next request must have its turn)
                asyncio.get_running_loop().call_soon(ended, bug(error))
                return
            if self._begun is not None:
                self._runner.ran_in_place(self._running[0].inputs)
                return
        self._submit(serving)

    def _ended_in_place(self, serving: Serving, outcome: Outcome | None) -> None:
        self._begun = None
        if outcome is None:
            self._submit(serving)
        else:
            self._hand_out(serving, [outcome])

    def _submit(self, serving: Serving) -> None:
        run = self._thread.submit(self._runner.run, self._running, serving)
        loop = asyncio.get_running_loop()
        run.add_done_callback(partial(_tell, loop, partial(self._ran, serving)))

    def _linger_ns(self, costs: BatchCosts) -> int:
        """How long it is worth waiting for others to share a run with; 0: not at all.

        Never when batching does not pay, when nobody else is likely to come so soon, when everybody who asks
        regularly is here already, or when the larger batch would endanger the earliest deadline.
        """
        if len(self._schedule) >= costs.limit:
            return 0
        now = time.monotonic_ns()
        longest = min(self._max_linger_ns, costs.expected_ns(1))
        if self._arrivals.gap_ns > longest or not self._clients.expected(now):
            return 0
        spare = self._schedule.earliest_ns - now - costs.expected_ns(costs.limit) - _LINGER_MARGIN_NS
        return max(min(self._schedule.oldest_ns + longest - now, spare), 0)

    def _expire(self, costs: BatchCosts) -> None:
        now = time.monotonic_ns()
        # What was true a while ago may not be: try one then, and measure again.
        fastest = costs.fastest_ns() if now - self._ran_ns < _PROBE_NS else 0
        late = "the deadline is before the end of the request's turn; the server is too slow for it"
        for job in self._schedule.expire(now, fastest):
            _settle(job, ExpiredError(late))

    def _ran(self, serving: Serving, run: Future[list[Outcome]]) -> None:
        """Back in the event loop."""
        fault = run.exception()
        if fault is None:
            outcomes = run.result()
        else:
            outcomes = [bug(fault)] * len(self._running)
        self._hand_out(serving, outcomes)

    def _hand_out(self, serving: Serving, outcomes: list[Outcome]) -> None:
        """Tell those who asked, see what is next."""
        jobs, self._running, self._ran_ns = self._running, [], time.monotonic_ns()
        first = next((outcome for outcome in outcomes if isinstance(outcome, Answer)), None)
        if first is not None:
            serving.slot.costs.ran(first.batch, first.exec_ms)
        for job, outcome in zip(jobs, outcomes, strict=True):
            _settle(job, outcome)
        if self.watch is None:
            self._runner.forget()
            self._next()
        else:
            self._watching = asyncio.get_running_loop().create_task(
                self._show(self.watch, serving, jobs, outcomes)
            )

    async def _show(
        self, watch: Watch, serving: Serving, jobs: list[Job[Answer]], outcomes: list[Outcome]
    ) -> None:
        try:
            await watch(serving, jobs, outcomes)
        finally:
            self._watching = None
            self._runner.forget()
            self._next()

    def _refuse_all(self, error: ServerError) -> None:
        for job in self._schedule.clear():
            _settle(job, error)

    def _cancel_linger(self) -> None:
        linger, self._linger = self._linger, None
        if linger is not None:
            linger.cancel()


def _late(running: bool) -> str:
    if running:
        return "the deadline passed while the request was computed"
    return "the deadline passed before the request's turn came"


def _tell(
    loop: asyncio.AbstractEventLoop, ran: Callable[[Future[list[Outcome]]], None], run: Future[list[Outcome]]
) -> None:
    """In the inference thread: the run has ended."""
    if not run.cancelled():
        loop.call_soon_threadsafe(ran, run)


def _settle(job: Job[Answer], outcome: Outcome) -> None:
    """Tell whoever waits for it; nobody does when the request was given up."""
    if job.answer.done():
        return
    if isinstance(outcome, Answer):
        job.answer.set_result(outcome)
    else:
        job.answer.set_exception(outcome)
