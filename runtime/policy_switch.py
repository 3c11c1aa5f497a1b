"""Where the next action chunk comes from: the policy server, or the robot's own while that one is gone.

The remote one is left after one failure that says it is not there, after two of any other kind, or when
an answer is a good while overdue; the plan under way bridges the change. It is asked again beside the
local one, with real observations whose answers are not played, and taken back when several in a row came
in time. Every change is an event, and chunk epochs rise with it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from runtime.fallback import FallbackServer
from runtime.nouns import ActionChunk, Observation
from runtime.outcomes import Outcome
from runtime.policy_client import PolicyClient
from runtime.policy_log import PolicyLog
from runtime.policy_types import (
    LoadResult,
    PolicyClientError,
    PolicyRefusedError,
    PolicyReplyError,
    PolicyStatus,
    PolicyTimeoutError,
    PolicyUnavailableError,
    SwapResult,
)

log = logging.getLogger(__name__)

#: An answer this much later than it should be is not waited for, s.
PATIENCE_S = 0.25
#: Answers in a row, each in time, after which the remote server is trusted again.
PROBATION = 3
_PROBE_S = 0.25  # from one probing observation to the next
_FAILURES = 2
_KEEP_S = 0.25
_SERVERS_FAULT = (PolicyTimeoutError, PolicyReplyError, PolicyRefusedError)


class PolicySource(Protocol):
    """What answers with chunks and tells of its bundles: the client of one server, or the switch of two."""

    @property
    def round_trip_s(self) -> float | None: ...

    def begin(self, observation: Observation) -> bool: ...

    def take(self) -> ActionChunk | None: ...

    async def status(self, manifests: bool = False, timeout_s: float = 5.0) -> PolicyStatus: ...

    async def load(
        self, path: str, backend: str = "", activate: bool = False, timeout_s: float = 120.0
    ) -> LoadResult: ...

    async def swap(self, version: str, timeout_s: float = 5.0) -> SwapResult: ...

    async def report(self, outcome: Outcome) -> str: ...


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the source: to the local server (``local``) or back, when (monotonic ns), and why."""

    local: bool
    t_ns: int
    reason: str


class PolicySwitch:
    """The remote server's client and, with ``local``, the one to fall back on.

    Bundles are loaded and swapped on the remote server only. Use it within one running event loop.
    """

    def __init__(
        self,
        remote: PolicyClient,
        local: PolicyClient | None = None,
        server: FallbackServer | None = None,
        on_change: Callable[[Change], None] = lambda _: None,
    ) -> None:
        self._remote = remote
        self._local = local
        self._clients = [remote] if local is None else [remote, local]
        self._server = server
        self.on_change = on_change
        self._on_local = False
        self._why = ""
        self._seen_failures = 0
        self._in_a_row = 0
        self._good = 0
        self._probed_s = 0.0
        self._epoch = 0
        self._told: tuple[bool, int] | None = None
        self.changes = 0

    @property
    def active(self) -> PolicyClient:
        """Who is asked for what is played."""
        return self._local if self._on_local and self._local is not None else self._remote

    @property
    def clients(self) -> dict[str, PolicyClient]:
        """Both, by what they are to the robot."""
        return dict(zip(("remote", "local"), self._clients, strict=False))

    @property
    def on_local(self) -> bool:
        """Whether the local server has taken over."""
        return self._on_local

    @property
    def round_trip_s(self) -> float | None:
        """What an answer takes at present, s; None before the first."""
        return self.active.round_trip_s

    def describe(self) -> str:
        """One line for a person."""
        if self._on_local:
            return f"the robot's own policy server answers: {self._why}"
        error = self._remote.last_error
        return f"the policy server at {self._remote.address} is asked" + (f"; {error}" if error else "")

    def begin(self, observation: Observation) -> bool:
        """See `PolicyClient.begin`. Never waits, never raises."""
        self._judge()
        if self._on_local:
            self._probe(observation)
        return self.active.begin(observation)

    def take(self) -> ActionChunk | None:
        """See `PolicyClient.take`; an answer of the server that isn't asked any more is never played."""
        idle = self._remote if self._on_local else self._local
        seen = None if idle is None else idle.take()
        if self._on_local:
            self._tried(seen is not None)
        chunk = self.active.take()
        self._judge()
        return None if chunk is None else replace(chunk, epoch=self._rising(chunk.epoch))

    @property
    def log(self) -> PolicyLog | None:
        """Where answers are noted, of whichever server."""
        return self._remote.log

    @log.setter
    def log(self, log: PolicyLog | None) -> None:
        for client in self._clients:
            client.log = log

    async def run(self) -> None:
        """Heartbeats of both, and the local server's process, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for client in self._clients:
                group.create_task(client.heartbeat())
            while self._server is not None:
                self._server.keep()
                self._judge()
                await asyncio.sleep(_KEEP_S)

    async def status(self, manifests: bool = False, timeout_s: float = 5.0) -> PolicyStatus:
        """Of the server that is asked; of the local one when the other does not answer."""
        if self._on_local or self._local is None:
            return await self.active.status(manifests, timeout_s)
        try:
            return await self._remote.status(manifests, timeout_s)
        except PolicyClientError as error:
            status = await self._local.status(manifests, timeout_s)  # else its own error is the answer
            if status.active is None:
                raise
            self._change(True, str(error))
            return status

    async def load(
        self, path: str, backend: str = "", activate: bool = False, timeout_s: float = 120.0
    ) -> LoadResult:
        """See `PolicyClient.load`: on the remote server."""
        return await self._remote.load(path, backend, activate, timeout_s)

    async def report(self, outcome: Outcome) -> str:
        """See `PolicyClient.report`: to the remote server, whose bundles are on probation."""
        return await self._remote.report(outcome)

    async def swap(self, version: str, timeout_s: float = 5.0) -> SwapResult:
        """See `PolicyClient.swap`: on the remote server."""
        return await self._remote.swap(version, timeout_s)

    async def close(self) -> None:
        """Close both connections and end the local server. Safe to call twice."""
        for client in self._clients:
            await client.close()
        if self._server is not None:
            await asyncio.to_thread(self._server.stop)

    def _judge(self) -> None:
        """Leave the remote server when it is gone and the local one has not been found wanting."""
        remote, local = self._remote, self._local
        if self._on_local or local is None:
            return
        if remote.failures != self._seen_failures:
            self._in_a_row += remote.failures - self._seen_failures
            self._seen_failures = remote.failures
        if remote.last_error is None:
            self._in_a_row = 0
        if self._in_a_row >= _enough(remote.last_error):
            self._change(True, str(remote.last_error))
        elif remote.waiting_s - min(remote.pace.overdue_s, PATIENCE_S) > PATIENCE_S:
            self._change(True, f"no answer from {remote.address} for {remote.waiting_s:.2f} s")

    def _probe(self, observation: Observation) -> None:
        """Send the remote server an observation now and then; its answer is only counted."""
        now_s = time.monotonic()
        if now_s - self._probed_s >= _PROBE_S and self._remote.begin(observation):
            self._probed_s = now_s

    def _tried(self, answered: bool) -> None:
        """Count the remote server's answers to probes; enough in a row, and it is asked again."""
        remote = self._remote
        if remote.failures != self._seen_failures or remote.waiting_s > 2 * PATIENCE_S:
            self._seen_failures, self._good = remote.failures, 0
        elif answered:
            self._good += 1
            if self._good >= PROBATION:
                self._change(False, f"{remote.address} answers again")

    def _change(self, local: bool, reason: str) -> None:
        self._on_local, self._why = local, reason
        self._good = self._in_a_row = 0
        self._seen_failures = self._remote.failures
        self.changes += 1
        log.warning("policy_switch to=%s reason=%s", "local" if local else "remote", reason)
        self.on_change(Change(local, time.monotonic_ns(), reason))

    def _rising(self, epoch: int) -> int:
        """An epoch that rises whenever another server or another bundle of it answers."""
        key = (self._on_local, epoch)
        if key != self._told:
            self._told = key
            self._epoch += 1
        return self._epoch


def _enough(error: Exception | None) -> float:
    """How many failures in a row, the last of this kind, say that a server is of no use."""
    if isinstance(error, PolicyUnavailableError):
        return 1
    return _FAILURES if isinstance(error, _SERVERS_FAULT) else float("inf")


def flag_evidence(change: Change, version: str) -> dict[str, Any]:
    """What an episode's flag says of a change; ``version`` drove until then."""
    return {"to": "local" if change.local else "remote", "from_version": version, "reason": change.reason}
