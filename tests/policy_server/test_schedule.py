"""Whose turn it is: earliest deadline first, fair when that can't be kept, nothing computed for nobody."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import numpy as np

from policy_server.clients import Client
from policy_server.costs import BatchCosts, measure
from policy_server.schedule import Job, Schedule
from policy_server.spec import Inputs

MS = 1_000_000


def job(client: Client, deadline_ms: float, queued_ms: float = 0.0) -> Job[Any]:
    inputs = Inputs(np.zeros(6, np.float32), {})
    future: asyncio.Future[Any] = asyncio.Future()
    return Job(client, inputs, round(deadline_ms * MS), round(queued_ms * MS), future)


def one(_: int) -> int:
    return 1


def cost(ms: float) -> Any:
    return lambda size: round(ms * MS)


async def test_the_earliest_deadline_goes_first():
    schedule: Schedule[Any] = Schedule(16)
    clients = [Client(str(n)) for n in range(5)]
    for client, deadline in zip(clients, (500, 100, 400, 200, 300), strict=True):
        assert schedule.add(job(client, deadline)) is None
    order = [schedule.choose(n * 10 * MS, one, cost(10))[0].deadline_ns // MS for n in range(5)]
    assert order == [100, 200, 300, 400, 500]
    assert schedule.choose(0, one, cost(10)) == []


async def test_what_cannot_be_ready_in_time_is_taken_out_before_it_is_computed():
    schedule: Schedule[Any] = Schedule(16)
    client = Client("a")
    jobs = [job(client, deadline) for deadline in (90, 109, 111)]
    for each in jobs:
        schedule.add(each)
    assert schedule.expire(100 * MS, 0) == jobs[:1]
    assert schedule.expire(100 * MS, 10 * MS) == jobs[1:2]
    assert len(schedule) == 1
    assert schedule.remove(jobs[2])
    assert not schedule.remove(jobs[2])


async def test_a_greedy_client_cannot_starve_the_others_when_there_is_too_much_to_do():
    """It always has the tightest deadlines and four requests waiting; each of the others has one."""
    schedule: Schedule[Any] = Schedule(32)
    greedy, modest = Client("greedy"), [Client(str(n)) for n in range(3)]
    served: Counter[str] = Counter()
    now = 0.0
    for _ in range(400):
        waiting = Counter(j.client.session for j in schedule._jobs)
        for _ in range(4 - waiting["greedy"]):
            schedule.add(job(greedy, now + 40))
        for client in modest:
            if not waiting[client.session]:
                schedule.add(job(client, now + 100))
        schedule.expire(round(now * MS), 30 * MS)
        (chosen,) = schedule.choose(round(now * MS), one, cost(30))
        served[chosen.client.session] += 1
        now += 30
    assert min(served.values()) >= 95, served
    assert max(served.values()) <= 105, served


async def test_a_greedy_client_gets_no_more_for_being_always_there_with_loose_deadlines():
    schedule: Schedule[Any] = Schedule(32)
    greedy, modest = Client("greedy"), [Client(str(n)) for n in range(3)]
    served: Counter[str] = Counter()
    for n in range(200):
        now = 30.0 * n
        waiting = Counter(j.client.session for j in schedule._jobs)
        for _ in range(4 - waiting["greedy"]):
            schedule.add(job(greedy, now + 900))
        for client in modest:
            if not waiting[client.session]:
                schedule.add(job(client, now + 1000))
        served[schedule.choose(round(now * MS), one, cost(30))[0].client.session] += 1
    assert max(served.values()) - min(served.values()) <= 3, served


async def test_a_deadline_that_a_fair_order_would_miss_goes_first():
    schedule: Schedule[Any] = Schedule(16)
    busy, idle = Client("busy", service=10.0), [Client(str(n), service=5.0) for n in range(4)]
    schedule.add(job(busy, 45))
    for client in idle:
        schedule.add(job(client, 1000))
    assert schedule.choose(0, one, cost(30))[0].client is busy


async def test_a_client_that_comes_back_is_owed_nothing():
    schedule: Schedule[Any] = Schedule(32)
    busy, late = Client("busy"), Client("late")
    for n in range(100):
        schedule.add(job(busy, n * 10 + 15))
        schedule.choose(n * 10 * MS, one, cost(10))
    served: Counter[str] = Counter()
    for n in range(20):
        for client in (busy, late):
            schedule.add(job(client, 5))  # nothing can be kept
        served[schedule.choose(n, one, cost(10))[0].client.session] += 1
    assert abs(served["busy"] - served["late"]) <= 2, served


async def test_a_full_room_makes_place_for_who_has_less_waiting():
    schedule: Schedule[Any] = Schedule(4)
    greedy, modest = Client("greedy"), Client("modest")
    jobs = [job(greedy, deadline) for deadline in (10, 40, 30, 20)]
    for each in jobs:
        assert schedule.add(each) is None
    another = job(greedy, 5)
    assert schedule.add(another) is another
    assert schedule.add(job(modest, 50)) is jobs[1]
    assert schedule.add(job(modest, 60)) is jobs[2]
    last = job(modest, 70)
    assert schedule.add(last) is last
    assert len(schedule) == 4


async def test_a_batch_is_as_large_as_pays_and_the_earliest_deadline_allows():
    costs = BatchCosts({1: 10.0, 2: 12.0, 4: 16.0, 8: 40.0})
    assert (costs.sizes, costs.limit) == ((1, 2, 4), 4)
    assert [costs.fit(n) for n in (1, 2, 3, 4, 9)] == [1, 2, 2, 4, 4]

    def choose(*deadlines: float) -> int:
        schedule: Schedule[Any] = Schedule(32)
        for n, deadline in enumerate(deadlines):
            schedule.add(job(Client(str(n)), deadline))
        return len(schedule.choose(0, costs.fit, costs.expected_ns))

    assert choose(*[100.0] * 9) == 4
    assert choose(14.0, *[100.0] * 8) == 2
    assert choose(11.0, *[100.0] * 8) == 1
    assert choose(100.0) == 1


def test_costs_are_learnt_and_hope_is_the_fastest_lately():
    costs = BatchCosts({1: 10.0, 2: 19.9})
    assert costs.sizes == (1,)
    assert "does not pay" in costs.describe()
    assert costs.fastest_ns() == 0, "what was measured while loading may have been slower"
    costs.ran(1, 10.0)
    assert costs.fastest_ns() == 10 * MS
    for _ in range(40):
        costs.ran(1, 30.0)
    assert costs.fastest_ns() == 30 * MS
    assert 29 * MS < costs.expected_ns(1) <= 30 * MS
    assert BatchCosts().fastest_ns() == 0
    wrong = BatchCosts({1: 10.0, 2: 12.0})
    for _ in range(20):
        wrong.ran(2, 25.0)  # what was measured while loading does not hold
    assert wrong.fit(2) == 1
    assert 24 * MS < wrong.expected_ns(2) < 25.1 * MS
    assert "up to 2" in BatchCosts({1: 10.0, 2: 11.0}).describe()


class _Session:
    """Batches of up to ``most``, taking ``base_ms`` and ``each_ms`` for every observation in them."""

    def __init__(self, inner: Any, most: int, base_ms: float, each_ms: float) -> None:
        self.manifest, self._inner, self._most = inner.manifest, inner, most
        self._base_ms, self._each_ms = base_ms, each_ms
        self.sizes: list[int] = []

    def infer(self, state: np.ndarray, images: dict[str, np.ndarray]) -> Any:
        self.sizes.append(len(state))
        if len(state) > self._most:
            raise ValueError("one at a time")
        time.sleep((self._base_ms + self._each_ms * len(state)) / 1e3)
        return self._inner.infer(state, images)


def test_batches_are_measured_while_doubling_pays_and_the_engine_takes_them(place):
    from policies.session import OnnxSession

    inner = OnnxSession(place.bundle("a"))
    session = _Session(inner, 4, base_ms=20, each_ms=0)
    assert measure(session, max_batch=32, runs=2).sizes == (1, 2, 4)
    assert set(session.sizes) == {1, 2, 4, 8}
    fixed = _Session(inner, 1, base_ms=20, each_ms=0)
    assert measure(fixed, max_batch=32, runs=1).sizes == (1,)
    dear = _Session(inner, 32, base_ms=0, each_ms=20)
    assert measure(dear, max_batch=32, runs=2).sizes == (1,)
    assert set(dear.sizes) == {1, 2}
