"""Whose request is computed next: whoever has had least, unless a deadline needs another order.

Earliest deadline first is the best order as long as every deadline can be met; but it gives most to who
asks most, and when deadlines can't be met, it serves those who ask for the tightest ones and starves the
rest. So the server is shared out evenly: each client has a virtual time that rises by one with each
request of its that is computed, and the client furthest behind goes first, the earliest deadline among
equals (start-time fair queueing, Goyal, Vin and Cheng 1996; all requests weigh the same). Only when that
order would endanger a deadline that the earliest-first order keeps, that one is taken. Many streams of
one client share its one virtual time.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from policy_server.clients import Client
from policy_server.spec import Inputs

A = TypeVar("A")

_MARGIN = 1.5  # by which runs may take longer than expected and the fair order still keep the deadlines


@dataclass(slots=True, eq=False)
class Job(Generic[A]):
    """A request that waits: monotonic ns, and the future that its answer, an ``A``, goes into."""

    client: Client
    inputs: Inputs
    deadline_ns: int
    queued_ns: int
    answer: asyncio.Future[A] = field(repr=False)


class Schedule(Generic[A]):
    """The requests waiting for their turn; not for those that are being computed."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._jobs: list[Job[A]] = []
        self._virtual = 0.0

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def earliest_ns(self) -> int:
        """The earliest deadline; there must be a job."""
        return min(job.deadline_ns for job in self._jobs)

    @property
    def oldest_ns(self) -> int:
        """When the longest waiting job came; there must be one."""
        return min(job.queued_ns for job in self._jobs)

    def add(self, job: Job[A]) -> Job[A] | None:
        """Let a job wait; when there is no room, returns the one that must go for it, maybe itself.

        That is the latest of the client that has most waiting, so that no one client fills the room.
        """
        if len(self._jobs) < self._limit:
            self._jobs.append(job)
            return None
        waiting = Counter(other.client for other in self._jobs)
        client, most = waiting.most_common(1)[0]
        if most <= waiting[job.client] + 1:
            return job
        victim = max((j for j in self._jobs if j.client is client), key=lambda j: j.deadline_ns)
        self._jobs.remove(victim)
        self._jobs.append(job)
        return victim

    def remove(self, job: Job[A]) -> bool:
        """Forget a job that its client gave up; False when it isn't waiting any more."""
        if job not in self._jobs:
            return False
        self._jobs.remove(job)
        return True

    def expire(self, now_ns: int, fastest_ns: int) -> list[Job[A]]:
        """Take out what cannot be ready by its deadline even if it were computed at once, and that fast."""
        late = [job for job in self._jobs if job.deadline_ns <= now_ns + fastest_ns]
        for job in late:
            self._jobs.remove(job)
        return late

    def choose(self, now_ns: int, fit: Callable[[int], int], cost_ns: Callable[[int], int]) -> list[Job[A]]:
        """Take out the next batch; empty only when nothing waits.

        ``fit(n)`` is the size to run when n wait, ``cost_ns(size)`` what a run takes. The batch shrinks
        when at full size it would miss the earliest deadline in it.
        """
        if not self._jobs:
            return []
        size = fit(len(self._jobs))
        jobs = _order(self._jobs, self._virtual, now_ns, size, cost_ns(size))
        batch = jobs[:size]
        while size > 1 and min(job.deadline_ns for job in batch) < now_ns + cost_ns(size):
            size = fit(size - 1)
            batch = jobs[:size]
        for job in batch:
            self._jobs.remove(job)
            self._virtual = max(self._virtual, job.client.service)
            job.client.service = max(job.client.service, self._virtual) + 1
        return batch

    def clear(self) -> list[Job[A]]:
        """Take out everything."""
        jobs, self._jobs = self._jobs, []
        return jobs


def _order(jobs: list[Job[A]], virtual: float, now_ns: int, size: int, cost_ns: int) -> list[Job[A]]:
    """The fair order, unless only the earliest-first one keeps all deadlines."""
    urgent = sorted(jobs, key=lambda job: job.deadline_ns)
    fair = _fair(urgent, virtual)
    if _feasible(fair, now_ns, size, round(_MARGIN * cost_ns)) or not _feasible(
        urgent, now_ns, size, cost_ns
    ):
        return fair
    return urgent


def _feasible(jobs: list[Job[A]], now_ns: int, size: int, cost_ns: int) -> bool:
    """Whether jobs in that order, ``size`` at a time, all end by their deadlines."""
    return all(now_ns + (n // size + 1) * cost_ns <= job.deadline_ns for n, job in enumerate(jobs))


def _fair(urgent: list[Job[A]], virtual: float) -> list[Job[A]]:
    """Jobs, given by deadline, with the least served client's first, the earliest deadline among equals."""
    taken: Counter[Client] = Counter()
    ranked: list[tuple[float, int, int, Job[A]]] = []
    for n, job in enumerate(urgent):
        turn = max(job.client.service, virtual) + taken[job.client]
        taken[job.client] += 1
        ranked.append((turn, job.deadline_ns, n, job))
    return [job for *_, job in sorted(ranked)]
