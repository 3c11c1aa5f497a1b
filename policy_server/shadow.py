"""A second bundle that sees what the serving one is asked, and whose actions go nowhere.

It runs in the processor's spare time, on at most one observation at a time: what comes while it is at
work is skipped and counted. Only the differences are kept.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from policy_server.backends import FAILURES
from policy_server.batch import Observed
from policy_server.claim import can_come_back
from policy_server.errors import RefusedBundleError
from policy_server.process_session import ProcessSession
from policy_server.slots import BundleSlots, Slot

log = logging.getLogger(__name__)

_RECENT = 4096
_SERVES = "it serves now"
_LEAVE_S = 1.0  # for a run under way when its engine is needed


@dataclass(frozen=True, slots=True)
class Compared:
    """What a shadow run has found so far; see ``ShadowReport`` of policy.proto."""

    version: str
    serving: str
    running: bool
    compared: int
    skipped: int
    failed: int
    mean_rad: float
    max_rad: float
    mean_sd: float
    max_sd: float
    exec_ms_p50: float
    exec_ms_p99: float
    seconds: float
    reason: str
    action_names: tuple[str, ...]
    joint_mean_rad: tuple[float, ...]


class Shadow:
    """One comparison of ``slot`` with whatever serves. Owned by the event loop."""

    def __init__(self, slot: Slot, seconds: float) -> None:
        """Raises RefusedBundleError for a slot without a process: it would get in the way of requests."""
        if not isinstance(slot.session, ProcessSession):
            raise RefusedBundleError('a shadow needs a process; start the server with isolation = "process"')
        self.slot = slot
        self._session = slot.session
        self._seconds = seconds
        self._serving = ""
        self._began = time.monotonic()
        self._ended: float | None = None
        self._reason = ""
        self._thread = ThreadPoolExecutor(1, "shadow")  # it waits; the engine does the work when idle
        self._busy: asyncio.Future[None] | None = None
        self._compared = self._skipped = self._failed = 0
        self._sum_rad = np.zeros(len(slot.manifest.action_names))
        self._sum_sd = 0.0
        self._max_rad = self._max_sd = 0.0
        self._exec_ms: deque[float] = deque(maxlen=_RECENT)

    @property
    def running(self) -> bool:
        """Whether it still looks at observations; its time may just have run out."""
        if self._ended is None and time.monotonic() - self._began > self._seconds:
            self.end("its time is over")
        return self._ended is None

    @property
    def busy(self) -> bool:
        """Whether a run is under way, after its time maybe."""
        return self._busy is not None and not self._busy.done()

    def wants(self, serving: Slot) -> bool:
        """Whether the next observation should be shown to it; one that is not is counted as skipped."""
        if not self.running or serving is self.slot or not self.slot.alive:
            return False
        if self.busy:
            self._skipped += 1
            return False
        return True

    def missed(self) -> None:
        """An observation was gone before it could be copied for it."""
        self._skipped += 1

    def look(self, observed: Observed, served: npt.NDArray[np.float32], serving: Slot) -> None:
        """Run on an observation behind everything else; ``served`` (H, A) is what was answered."""
        if self._ended is not None:  # since it was asked; its slot may serve by now
            return
        self._serving = serving.version
        loop = asyncio.get_running_loop()
        self._busy = asyncio.ensure_future(self._compare(loop, observed, served, serving))

    async def stop(self, reason: str) -> None:
        """End it. A run under way is waited for, but not for long: its engine is ended then.

        The slot is free afterwards, or its bundle has to be loaded again.
        """
        self.end(reason)
        if self._busy is not None:
            await asyncio.wait([self._busy], timeout=_LEAVE_S)
        if self.busy:
            log.warning("shadow.ended version=%s its run takes too long", self.slot.version)
            self.slot.close()

    def close(self) -> None:
        """End it, if it has not; a run under way ends by itself."""
        self.end("the server stopped")
        self._thread.shutdown(wait=False, cancel_futures=True)

    def report(self) -> Compared:
        """What was found so far."""
        running = self.running
        n = max(self._compared, 1)
        exec_ms = list(self._exec_ms) or [0.0]
        return Compared(
            version=self.slot.version,
            serving=self._serving,
            running=running,
            compared=self._compared,
            skipped=self._skipped,
            failed=self._failed,
            mean_rad=float(self._sum_rad.mean()) / n,
            max_rad=self._max_rad,
            mean_sd=self._sum_sd / n,
            max_sd=self._max_sd,
            exec_ms_p50=float(np.percentile(exec_ms, 50)),
            exec_ms_p99=float(np.percentile(exec_ms, 99)),
            seconds=(time.monotonic() if self._ended is None else self._ended) - self._began,
            reason=self._reason,
            action_names=self.slot.manifest.action_names,
            joint_mean_rad=tuple((self._sum_rad / n).tolist()),
        )

    def end(self, reason: str) -> None:
        """Look at nothing more, for the first reason that is given."""
        if self._ended is None:
            self._ended, self._reason = time.monotonic(), reason

    async def _compare(
        self,
        loop: asyncio.AbstractEventLoop,
        observed: Observed,
        served: npt.NDArray[np.float32],
        serving: Slot,
    ) -> None:
        begin = time.monotonic()
        try:
            result = await loop.run_in_executor(self._thread, self._session.infer_idle, *observed)
        except FAILURES:
            self._failed += 1
            return
        self._exec_ms.append((time.monotonic() - begin) * 1e3)
        length = min(len(served), result.actions.shape[1])
        off = np.abs(result.actions[0, :length].astype(np.float64) - served[:length])
        if not np.isfinite(off).all():
            self._failed += 1
            return
        sd = off / np.maximum(np.asarray(serving.manifest.normalisation.action.std), 1e-6)
        self._compared += 1
        self._sum_rad += off.mean(axis=0)
        self._sum_sd += float(sd.mean())
        self._max_rad = max(self._max_rad, float(off.max()))
        self._max_sd = max(self._max_sd, float(sd.max()))


class ShadowDesk:
    """At most one shadow at a time: who it is, what it found, and that it is out of the way at a swap."""

    def __init__(self, slots: BundleSlots, seconds: float, threads: int) -> None:
        """``seconds`` is how long one lasts if nobody says; ``threads`` are an engine's."""
        self._slots = slots
        self._seconds = seconds
        self._threads = threads
        self._shadow: Shadow | None = None
        self._found: Compared | None = None

    async def begin(self, slot: Slot, seconds: float) -> None:
        """Run a resident slot on what is asked from now on. Raises RefusedBundleError if it does not fit."""
        serving = self._slots.serving
        if serving is not None and serving.slot is slot:
            raise RefusedBundleError(f"bundle {slot.version} serves; a shadow is another one")
        self._slots.check_replacement(slot.manifest, slot.spec, slot.version)
        if self._threads > 1 and not can_come_back():
            raise RefusedBundleError(
                f"the {self._threads} threads of a shadow could not leave spare time again to serve; "
                "set LimitNICE to the server's niceness, or threads = 1"
            )
        shadow = Shadow(slot, seconds or self._seconds)
        await self.stop("another one was asked for")
        if not slot.alive:
            raise RefusedBundleError(
                f"the engine of bundle {slot.version} has ended and is loaded again; ask again then"
            )
        self._slots.pinned["shadow"] = slot
        self._shadow = shadow

    async def stop(self, reason: str) -> None:
        """End the present one, if there is one; what it found is kept until the next."""
        shadow = self._shadow
        if shadow is not None:
            await shadow.stop(reason)
            self._put_away(shadow)

    def tick(self) -> None:
        """Let go of a bundle whose time as a shadow is over, or whose engine has ended."""
        shadow = self._shadow
        if shadow is None:
            return
        if not shadow.slot.alive:
            shadow.end("its engine process ended")
        if not shadow.running and not shadow.busy:
            self._put_away(shadow)

    def free(self, slot: Slot) -> bool:
        """Whether this slot could serve from now on; a shadow that is not at work ends for it."""
        shadow = self._shadow
        if shadow is None or shadow.slot is not slot:
            return True
        if shadow.busy:
            return False
        shadow.end(_SERVES)
        self._put_away(shadow)
        return True

    async def release(self, slot: Slot) -> None:
        """End the shadow if it is this slot, which is about to serve."""
        if self._shadow is not None and self._shadow.slot is slot:
            await self.stop(_SERVES)

    def wanted(self, serving: Slot) -> Shadow | None:
        """The shadow that should see the next observation, if one is idle."""
        shadow = self._shadow
        return shadow if shadow is not None and shadow.wants(serving) else None

    def report(self) -> Compared | None:
        """What the present or the last one found."""
        return self._found if self._shadow is None else self._shadow.report()

    def _put_away(self, shadow: Shadow) -> None:
        """Keep what it found, and nothing that holds its bundle in memory."""
        if shadow is self._shadow:
            self._found, self._shadow = shadow.report(), None
            self._slots.pinned.pop("shadow", None)
            shadow.close()

    def close(self) -> None:
        """End it; a run under way ends by itself."""
        if self._shadow is not None:
            self._shadow.close()
