"""One thread that runs the policy, and the bounded queue in front of it.

One, because a session is not thread-safe and because two inferences at once on a small machine
only make both late. The event loop stays free for health checks, loads and swaps.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from policies.session import ChunkResult
from policy_server.backends import FAILURES
from policy_server.errors import (
    ExpiredError,
    InferenceError,
    NothingServingError,
    OverloadedError,
    ServerError,
)
from policy_server.slots import BundleSlots
from policy_server.spec import Inputs

_RECENT = 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """``actions`` float32 (H, A), ``features`` float32 (D,), and who made them and how fast."""

    actions: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32]
    version: str
    epoch: int
    exec_ms: float
    queue_ms: float


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


@dataclass(frozen=True, slots=True)
class _Job:
    inputs: Inputs
    deadline_ns: int
    queued_ns: int


class InferenceWorker:
    """Runs requests one after the other on whatever `slots` is serving when their turn comes."""

    def __init__(self, slots: BundleSlots, max_waiting: int) -> None:
        self._slots = slots
        self._max_waiting = max_waiting
        self.pending = 0  # waiting, and the one running
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self.counters = Counters()

    async def infer(self, inputs: Inputs, deadline_ns: int) -> Answer:
        """Answer a checked request, unless its deadline (monotonic ns) passes before its turn.

        Raises OverloadedError, ExpiredError, NothingServingError or InferenceError, and counts what happened.
        """
        if self.pending > self._max_waiting:
            self.counters.refused += 1
            raise OverloadedError(
                f"{self.pending} requests are waiting already; ask again when one is answered"
            )
        job = _Job(inputs, deadline_ns, time.monotonic_ns())
        self.pending += 1
        try:
            answer = await asyncio.get_running_loop().run_in_executor(self._thread, self._run, job)
        except (asyncio.CancelledError, ExpiredError):
            self.counters.dropped += 1
            raise
        except ServerError:
            self.counters.failed += 1
            raise
        finally:
            self.pending -= 1
        self.counters.answered(answer.exec_ms)
        return answer

    async def ping(self) -> None:
        """Return once the thread has come round to it: proof that it is not stuck."""
        await asyncio.get_running_loop().run_in_executor(self._thread, lambda: None)

    def close(self) -> None:
        """Give up what is waiting and let the running inference end."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _run(self, job: _Job) -> Answer:
        begin = time.monotonic_ns()
        if begin >= job.deadline_ns:
            raise ExpiredError(
                "the deadline passed before the request's turn came; the server is too slow for it"
            )
        serving = self._slots.serving  # one read: a swap happens between requests, never within one
        if serving is None:
            raise NothingServingError("no bundle is loaded; load one")
        inputs = job.inputs
        version = serving.slot.version
        images = {name: image[None] for name, image in inputs.images.items()}
        try:
            result = serving.slot.session.infer(inputs.state[None], images)
        except FAILURES as error:
            reason = str(error).partition("\n")[0][:300]
            raise InferenceError(f"bundle {version} failed: {reason}; roll it back") from error
        end = time.monotonic_ns()
        _check_finite(result, version)
        return Answer(
            actions=result.actions[0],
            features=result.features[0],
            version=version,
            epoch=serving.epoch,
            exec_ms=(end - begin) / 1e6,
            queue_ms=(begin - job.queued_ns) / 1e6,
        )


def _check_finite(result: ChunkResult, version: str) -> None:
    if not np.isfinite(result.actions).all():
        raise InferenceError(f"bundle {version} answered with a NaN or an infinity; roll it back")
