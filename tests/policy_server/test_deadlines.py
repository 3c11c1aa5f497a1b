"""What is late is dropped and counted, never computed; nobody waits longer than the deadline."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import numpy as np
import tiny

from policies.session import ChunkResult
from policy_server.costs import BatchCosts
from protos.ratchet.v1 import policy_pb2 as pb
from tests.runtime.waiting import eventually

Code = grpc.StatusCode
#: Said when the machine gave the server no time between a request's arrival and its turn: ask again.
STOOD_STILL = "before the end of the request's turn"


async def test_a_request_past_its_deadline_is_dropped_and_counted(place, running):
    async with running(place.config(bundle=place.bundle("a").path)) as run:
        held = run.hold()
        held.release.clear()
        slow = asyncio.ensure_future(run.stub.Infer(tiny.make_request(1), timeout=20))
        await asyncio.to_thread(held.entered.wait, 5)
        error = await run.refusal(run.stub.Infer(tiny.make_request(2), timeout=0.5))  # time to arrive
        assert error.code() is Code.DEADLINE_EXCEEDED
        held.release.set()
        assert (await slow).tick == 1
        await eventually(lambda: run.server.servicer.worker.counters.dropped)
        status = await run.status()
        assert (status.dropped, status.served) == (1, 1)


async def test_a_request_without_a_deadline_gets_the_servers(place, running):
    async with running(place.config(bundle=place.bundle("a").path, default_deadline_s=0.1)) as run:
        held = run.hold()
        held.release.clear()
        # Whatever the engine does, nobody waits longer than the deadline; it still holds the first request
        # when the second comes.
        for words in ("while the request was computed", "before the request's turn"):
            said = STOOD_STILL
            while STOOD_STILL in said:
                error = await run.refusal(run.stub.Infer(tiny.make_request(1)))
                assert error.code() is Code.DEADLINE_EXCEEDED
                said = error.details()
            assert words in said
        held.release.set()


async def test_what_waits_past_its_deadline_is_never_computed(place, running):
    async with running(place.config(bundle=place.bundle("a").path)) as run:
        held = run.hold()
        held.release.clear()
        go = asyncio.Event()
        first = asyncio.ensure_future(run.stub.Infer(tiny.of("first", 1), timeout=20))
        await asyncio.to_thread(held.entered.wait, 5)
        requests = [tiny.of("arm", tick) for tick in range(3)]
        for request, budget in zip(requests, (50, 30_000, 50), strict=True):
            request.deadline_ms = budget
        call = run.stub.InferStream(tiny.stream(requests, go), timeout=20)
        replies = [await call.read()]
        await eventually(lambda: run.server.servicer.worker.counters.dropped == 2)
        computed: list[int] = []
        inner = held._inner

        class Counting:
            def infer(self, state: np.ndarray, images: Any) -> ChunkResult:
                computed.append(len(state))
                return inner.infer(state, images)

        held._inner = Counting()
        held.release.set()
        replies += [await call.read() for _ in range(2)]
        go.set()
        assert (await first).tick == 1
        assert [reply.tick for reply in replies] == [0, 1, 2]
        late = Code.DEADLINE_EXCEEDED.value[0]
        assert [reply.status for reply in replies] == [late, 0, late]
        assert "turn" in replies[0].reason
        assert sum(computed) == 2, "the first and the one that could wait"
        status = await run.stub.Status(pb.StatusRequest(), timeout=5)
        assert (status.dropped, status.served) == (2, 2)
        assert {c.session: (c.served, c.dropped) for c in status.clients} == {"first": (1, 0), "arm": (1, 2)}


async def test_a_deadline_that_no_run_can_meet_is_refused_at_once_but_tried_again_later(place, running):
    async with running(place.config(bundle=place.bundle("a").path)) as run:
        slow = BatchCosts()
        slow.ran(1, 5000.0)  # as it did when the machine was busy
        run.batching(slow)
        request = tiny.of("arm")
        request.deadline_ms = 4000
        assert (await run.stub.Infer(request, timeout=5)).status == 0, "nothing ran for long: try it"
        assert slow.runs[1] == 2
        slow = BatchCosts()
        slow.ran(1, 5000.0)
        run.batching(slow)
        error = await run.refusal(run.stub.Infer(request, timeout=5))
        assert error.code() is Code.DEADLINE_EXCEEDED
        assert "too slow" in error.details()
        for spoilt in (float("nan"), -1.0):
            request.deadline_ms = spoilt
            error = await run.refusal(run.stub.Infer(request, timeout=5))
            assert error.code() is Code.INVALID_ARGUMENT
