"""Many arms on one server: streams go on, nobody stalls the others, nobody leaves anything behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import tiny

from policies.session import ChunkResult
from protos.ratchet.v1 import policy_pb2 as pb

Code = grpc.StatusCode


async def test_a_stream_survives_what_its_requests_are_refused_for(place, running):
    async with running(place.config(bundle=place.bundle("a").path)) as run:
        requests = [tiny.of("arm", tick, state=tick) for tick in range(20)]
        requests[3].state.data = b""
        requests[7].images.add(camera="other")
        replies = [r async for r in run.stub.InferStream(tiny.stream(requests), timeout=20)]
        assert [r.tick for r in replies] == list(range(20))
        bad = Code.INVALID_ARGUMENT.value[0]
        assert [r.tick for r in replies if r.status == bad] == [3, 7]
        assert all(r.reason for r in replies if r.status)
        assert [tiny.actions(r)[0, 0] for r in replies if not r.status] == [
            t for t in range(20) if t not in (3, 7)
        ]


async def test_a_client_that_does_not_read_stalls_only_itself(place, running):
    async with running(place.config(bundle=place.bundle("wide", chunk=1000).path, max_in_flight=4)) as run:
        taken = 0

        async def flood() -> AsyncIterator[pb.InferRequest]:
            nonlocal taken
            for tick in range(2000):
                taken += 1
                yield tiny.of("greedy", tick)

        call = run.stub.InferStream(flood(), timeout=60)
        await asyncio.sleep(0.5)
        for tick in range(20):
            assert (await run.stub.Infer(tiny.of("modest", tick), timeout=5)).tick == tick
        assert taken < 1500, "the server read on although nobody took its answers"
        assert run.server.servicer.worker.pending <= 4
        call.cancel()
        await run.pending(0)
        for _ in range(200):
            status = await run.stub.Status(pb.StatusRequest(), timeout=5)
            if not any(client.in_flight for client in status.clients):
                break
            await asyncio.sleep(0.01)
        assert not any(client.in_flight for client in status.clients)


async def test_a_greedy_client_takes_no_more_than_its_share(place, running):
    """Eight streams of one session against two modest clients, on a session that takes 5 ms a run."""
    async with running(place.config(bundle=place.bundle("a").path, max_in_flight=4)) as run:
        slot = run.server.servicer.slots.serving.slot
        inner, stop = slot.session, asyncio.Event()

        class Slow:
            def infer(self, state: np.ndarray, images: Any) -> ChunkResult:
                import time

                time.sleep(0.005)
                return inner.infer(state, images)

        object.__setattr__(slot, "session", Slow())
        served = {"greedy": 0, "modest 0": 0, "modest 1": 0}

        async def ask(session: str, budget_ms: float) -> None:
            async def requests() -> AsyncIterator[pb.InferRequest]:
                tick = 0
                while not stop.is_set():
                    tick += 1
                    request = tiny.of(session, tick)
                    request.deadline_ms = budget_ms
                    yield request
                    await asyncio.sleep(0)

            async for reply in run.stub.InferStream(requests(), timeout=60):
                served[session] += reply.status == 0

        tasks = [asyncio.ensure_future(ask("greedy", 15.0)) for _ in range(8)]
        tasks += [asyncio.ensure_future(ask(f"modest {n}", 60.0)) for n in range(2)]
        await asyncio.sleep(2.0)
        stop.set()
        await asyncio.gather(*tasks)
        assert sum(served.values()) > 50
        for n in range(2):
            assert served[f"modest {n}"] > 0.2 * sum(served.values()), served


async def test_a_client_that_gives_up_leaves_nothing_behind(place, running):
    async with running(place.config(bundle=place.bundle("a").path)) as run:
        held = run.hold()
        held.release.clear()
        never = asyncio.Event()
        stub = run.stub
        calls = [stub.Infer(tiny.of("unary", n), timeout=20) for n in range(3)]
        waiting = [asyncio.ensure_future(call.wait_for_connection()) for call in calls]
        streams = [stub.InferStream(tiny.stream([tiny.of("stream", n)], never), timeout=20) for n in range(2)]
        reads = [asyncio.ensure_future(call.read()) for call in streams]
        await run.pending(5)
        for call in [*calls, *streams]:
            call.cancel()
        await asyncio.gather(*waiting, *reads, return_exceptions=True)
        await run.pending(1)  # the one that runs, which cannot be stopped
        held.release.set()
        await run.pending(0)
        for _ in range(200):
            status = await run.stub.Status(pb.StatusRequest(), timeout=5)
            if status.dropped == 5:
                break
            await asyncio.sleep(0.01)
        assert (status.dropped, status.served, status.waiting) == (5, 0, 0)
        assert not any(client.in_flight for client in status.clients)
