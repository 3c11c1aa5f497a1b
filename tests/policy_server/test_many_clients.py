"""Many arms on one server: batches answer as single runs do, streams keep order, nobody stalls the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import numpy as np
import pytest
import tiny
from test_policy_service import Code, hold, refusal

from policies.config import CameraShape
from policies.session import ChunkResult
from policy_server.costs import BatchCosts
from protos.codec import decode_tensor, encode_image
from protos.ratchet.v1 import policy_pb2 as pb


def batching(run: Any, costs: BatchCosts) -> None:
    object.__setattr__(run.server.servicer.slots.serving.slot, "costs", costs)


def actions(reply: pb.InferResponse) -> np.ndarray:
    return decode_tensor(reply.actions, "actions", np.float32, (None, 6))


def of(session: str, tick: int = 1, **over: Any) -> pb.InferRequest:
    request = tiny.make_request(tick, **over)
    request.session = session
    return request


async def stream(
    requests: Iterable[pb.InferRequest], then: asyncio.Event | None = None
) -> AsyncIterator[Any]:
    for request in requests:
        yield request
    if then is not None:
        await then.wait()


async def until(run: Any, pending: int) -> None:
    for _ in range(500):
        if run.server.servicer.worker.pending == pending:
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"{run.server.servicer.worker.pending} pending, not {pending}")


async def test_a_batch_answers_each_request_as_a_single_run_does(place, running):
    async with running(place.config(bundle=place.bundle("a", 2.0).path, max_linger_ms=0)) as run:
        rng = np.random.default_rng(3)
        requests = [
            of(f"arm {n}", n, state=rng.normal(size=6), brightness=10 * n, jpeg=n % 2 == 1) for n in range(9)
        ]
        alone = [await run.stub.Infer(request, timeout=5) for request in requests]
        batching(run, BatchCosts({1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}))
        held = hold(run.server)
        held.release.clear()
        first = asyncio.ensure_future(run.stub.Infer(requests[0], timeout=20))
        await asyncio.to_thread(held.entered.wait, 5)
        rest = [asyncio.ensure_future(run.stub.Infer(request, timeout=20)) for request in requests[1:]]
        await until(run, len(requests))
        held.release.set()
        together = [await first, *await asyncio.gather(*rest)]
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_allclose(actions(one), actions(other), atol=1e-5)
            assert (one.request_id, one.tick) == (other.request_id, other.tick)
        assert [reply.batch for reply in together] == [1] + [8] * 8
        assert all(reply.batch == 1 and reply.remaining_ms > 0 for reply in alone)
        status = await run.stub.Status(pb.StatusRequest(), timeout=5)
        assert {b.size: b.runs for b in status.batches} == {1: 1, 2: 0, 4: 0, 8: 1}


async def test_one_bad_picture_or_answer_in_a_batch_costs_the_others_nothing(place, running):
    async with running(place.config(bundle=place.bundle("a").path)) as run:
        batching(run, BatchCosts({1: 1.0, 2: 1.0}))
        held = hold(run.server)
        held.release.clear()
        calls = [asyncio.ensure_future(run.stub.Infer(of("first"), timeout=20))]
        await asyncio.to_thread(held.entered.wait, 5)
        calls += [asyncio.ensure_future(run.stub.Infer(of(f"arm {n}", n), timeout=20)) for n in range(2)]
        await until(run, 3)
        result = np.zeros((2, tiny.CHUNK, 6), np.float32)
        result[1] = np.nan

        class Spoilt:
            def infer(self, state: np.ndarray, images: Any) -> ChunkResult:
                return ChunkResult(result[: len(state)], np.zeros((len(state), 6), np.float32))

        held._inner = Spoilt()
        held.release.set()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        failed = [o for o in outcomes if isinstance(o, grpc.aio.AioRpcError)]
        assert len(failed) == 1
        assert failed[0].code() is Code.INTERNAL


async def test_features_that_are_not_finite_are_refused_as_actions_are(place, running):
    async with running(place.config(bundle=place.bundle("a").path)) as run:
        held = hold(run.server)
        features = np.zeros((1, 6), np.float32)
        features[0, 3] = np.inf
        held.answer = ChunkResult(np.zeros((1, tiny.CHUNK, 6), np.float32), features)
        code, details = await refusal(run.stub.Infer(of("arm"), timeout=5))
        assert code is Code.INTERNAL
        assert "NaN or an infinity" in details


async def test_the_bytes_of_what_waits_are_bounded(place, running):
    cameras = tuple(CameraShape(name=c.name, height=256, width=256) for c in tiny.CAMERAS)
    image = np.zeros((256, 256, 3), np.uint8)

    def large(session: str, jpeg: bool = False) -> pb.InferRequest:
        request = of(session)
        quality = 90 if jpeg else None
        request.images[0].CopyFrom(encode_image("front", image, jpeg_quality=quality))
        request.images[1].CopyFrom(encode_image("wrist", image, jpeg_quality=quality))
        return request

    config = place.config(
        bundle=place.bundle("large", cameras=cameras).path, max_message_mib=1, max_waiting_mib=1
    )
    async with running(config) as run:
        held = hold(run.server)
        held.release.clear()
        go = asyncio.Event()
        first = run.stub.InferStream(stream([large("a")], go), timeout=20)
        second = asyncio.ensure_future(run.stub.Infer(large("b"), timeout=20))
        await until(run, 2)
        for jpeg in (False, True):  # however small one is as it comes
            code, details = await refusal(run.stub.Infer(large("c", jpeg), timeout=5))
            assert code is Code.RESOURCE_EXHAUSTED
            assert "at most 1 MiB" in details
            assert "max_waiting_mib" in details
        status = await run.stub.Status(pb.StatusRequest(), timeout=5)
        assert (status.refused, status.waiting) == (2, 1)
        held.release.set()
        assert (await first.read()).status == 0
        await second
        go.set()
        assert (await run.stub.Infer(large("c"), timeout=5)).status == 0, "they are gone again"
        padded = large("c")
        padded.images[0].data += bytes(800_000 - len(padded.images[0].data))
        code, details = await refusal(run.stub.Infer(padded, timeout=5))
        assert code is Code.INVALID_ARGUMENT
        assert "cameras need at most" in details


async def test_what_waits_past_its_deadline_is_never_computed(place, running):
    async with running(place.config(bundle=place.bundle("a").path)) as run:
        held = hold(run.server)
        held.release.clear()
        go = asyncio.Event()
        first = asyncio.ensure_future(run.stub.Infer(of("first", 1), timeout=20))
        await asyncio.to_thread(held.entered.wait, 5)
        requests = [of("arm", tick) for tick in range(3)]
        for request, budget in zip(requests, (50, 30_000, 50), strict=True):
            request.deadline_ms = budget
        call = run.stub.InferStream(stream(requests, go), timeout=20)
        await until(run, 4)
        await asyncio.sleep(0.1)
        computed: list[int] = []
        inner = held._inner

        class Counting:
            def infer(self, state: np.ndarray, images: Any) -> ChunkResult:
                computed.append(len(state))
                return inner.infer(state, images)

        held._inner = Counting()
        held.release.set()
        replies = [await call.read() for _ in range(3)]
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
        slow.ran(1, 500.0)  # as it did when the machine was busy
        batching(run, slow)
        request = of("arm")
        request.deadline_ms = 400
        assert (await run.stub.Infer(request, timeout=5)).status == 0, "nothing ran for long: try it"
        assert slow.runs[1] == 2
        slow = BatchCosts()
        slow.ran(1, 500.0)
        batching(run, slow)
        code, details = await refusal(run.stub.Infer(request, timeout=5))
        assert code is Code.DEADLINE_EXCEEDED
        assert "too slow" in details
        for spoilt in (float("nan"), -1.0):
            request.deadline_ms = spoilt
            assert (await refusal(run.stub.Infer(request, timeout=5)))[0] is Code.INVALID_ARGUMENT


async def test_a_stream_survives_what_its_requests_are_refused_for(place, running):
    async with running(place.config(bundle=place.bundle("a").path)) as run:
        requests = [of("arm", tick, state=tick) for tick in range(20)]
        requests[3].state.data = b""
        requests[7].images.add(camera="other")
        replies = [r async for r in run.stub.InferStream(stream(requests), timeout=20)]
        assert [r.tick for r in replies] == list(range(20))
        bad = Code.INVALID_ARGUMENT.value[0]
        assert [r.tick for r in replies if r.status == bad] == [3, 7]
        assert all(r.reason for r in replies if r.status)
        assert [actions(r)[0, 0] for r in replies if not r.status] == [
            t for t in range(20) if t not in (3, 7)
        ]


async def test_a_client_that_does_not_read_stalls_only_itself(place, running):
    async with running(place.config(bundle=place.bundle("wide", chunk=1000).path, max_in_flight=4)) as run:
        taken = 0

        async def flood() -> AsyncIterator[pb.InferRequest]:
            nonlocal taken
            for tick in range(2000):
                taken += 1
                yield of("greedy", tick)

        call = run.stub.InferStream(flood(), timeout=60)
        await asyncio.sleep(0.5)
        for tick in range(20):
            assert (await run.stub.Infer(of("modest", tick), timeout=5)).tick == tick
        assert taken < 1500, "the server read on although nobody took its answers"
        assert run.server.servicer.worker.pending <= 4
        call.cancel()
        await until(run, 0)
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
                    request = of(session, tick)
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
        held = hold(run.server)
        held.release.clear()
        never = asyncio.Event()
        stub = run.stub
        calls = [stub.Infer(of("unary", n), timeout=20) for n in range(3)]
        waiting = [asyncio.ensure_future(call.wait_for_connection()) for call in calls]
        streams = [stub.InferStream(stream([of("stream", n)], never), timeout=20) for n in range(2)]
        reads = [asyncio.ensure_future(call.read()) for call in streams]
        await until(run, 5)
        for call in [*calls, *streams]:
            call.cancel()
        await asyncio.gather(*waiting, *reads, return_exceptions=True)
        await until(run, 1)  # the one that runs, which cannot be stopped
        held.release.set()
        await until(run, 0)
        for _ in range(200):
            status = await run.stub.Status(pb.StatusRequest(), timeout=5)
            if status.dropped == 5:
                break
            await asyncio.sleep(0.01)
        assert (status.dropped, status.served, status.waiting) == (5, 0, 0)
        assert not any(client.in_flight for client in status.clients)


async def test_sessions_and_their_requests_are_bounded(place, running):
    async with running(place.config(bundle=place.bundle("a").path, max_clients=2, max_in_flight=2)) as run:
        held = hold(run.server)
        held.release.clear()
        calls = [asyncio.ensure_future(run.stub.Infer(of("a", n), timeout=20)) for n in range(2)]
        await until(run, 2)
        code, details = await refusal(run.stub.Infer(of("a"), timeout=5))
        assert code is Code.RESOURCE_EXHAUSTED
        assert "'a' has 2 requests" in details
        calls.append(asyncio.ensure_future(run.stub.Infer(of("b"), timeout=20)))
        await until(run, 3)
        code, details = await refusal(run.stub.Infer(of("c"), timeout=5))
        assert code is Code.RESOURCE_EXHAUSTED
        assert "clients" in details
        held.release.set()
        await asyncio.gather(*calls)
