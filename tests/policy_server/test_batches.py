"""Several observations in one run, and what must not come out of one."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import numpy as np
import tiny

from policies.errors import InputError
from policies.session import ChunkResult
from policy_server.costs import BatchCosts
from protos.ratchet.v1 import policy_pb2 as pb

Code = grpc.StatusCode


async def test_a_batch_answers_each_request_as_a_single_run_does(place, running):
    async with running(place.config(bundle=place.bundle("a", 2.0).path, max_linger_ms=0)) as run:
        rng = np.random.default_rng(3)
        requests = [
            tiny.of(f"arm {n}", n, state=rng.normal(size=6), brightness=10 * n, jpeg=n % 2 == 1)
            for n in range(9)
        ]
        alone = [await run.stub.Infer(request, timeout=5) for request in requests]
        run.batching(BatchCosts({1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}))
        held = run.hold()
        held.release.clear()
        first = asyncio.ensure_future(run.stub.Infer(requests[0], timeout=20))
        await asyncio.to_thread(held.entered.wait, 5)
        rest = [asyncio.ensure_future(run.stub.Infer(request, timeout=20)) for request in requests[1:]]
        await run.pending(len(requests))
        held.release.set()
        together = [await first, *await asyncio.gather(*rest)]
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_allclose(tiny.actions(one), tiny.actions(other), atol=1e-5)
            assert (one.request_id, one.tick) == (other.request_id, other.tick)
        assert [reply.batch for reply in together] == [1] + [8] * 8
        assert all(reply.batch == 1 and reply.remaining_ms > 0 for reply in alone)
        status = await run.stub.Status(pb.StatusRequest(), timeout=5)
        assert {b.size: b.runs for b in status.batches} == {1: 1, 2: 0, 4: 0, 8: 1}


async def test_one_bad_picture_or_answer_in_a_batch_costs_the_others_nothing(place, running):
    async with running(place.config(bundle=place.bundle("a").path)) as run:
        run.batching(BatchCosts({1: 1.0, 2: 1.0}))
        held = run.hold()
        held.release.clear()
        calls = [asyncio.ensure_future(run.stub.Infer(tiny.of("first"), timeout=20))]
        await asyncio.to_thread(held.entered.wait, 5)
        calls += [asyncio.ensure_future(run.stub.Infer(tiny.of(f"arm {n}", n), timeout=20)) for n in range(2)]
        await run.pending(3)
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
        held = run.hold()
        features = np.zeros((1, 6), np.float32)
        features[0, 3] = np.inf
        held.answer = ChunkResult(np.zeros((1, tiny.CHUNK, 6), np.float32), features)
        error = await run.refusal(run.stub.Infer(tiny.of("arm"), timeout=5))
        assert error.code() is Code.INTERNAL
        assert "NaN or an infinity" in error.details()


async def test_an_answer_that_must_not_reach_an_arm_is_an_error(place, running):
    async with running(place.config(bundle=place.bundle("a").path)) as run:
        held = run.hold()
        held.answer = ChunkResult(np.full((1, 8, 6), np.nan, np.float32), np.zeros((1, 6), np.float32))
        error = await run.refusal(run.stub.Infer(tiny.make_request(), timeout=5))
        assert error.code() is Code.INTERNAL
        assert "NaN" in error.details()
        held.answer, held.fault = None, InputError("odd input")
        error = await run.refusal(run.stub.Infer(tiny.make_request(), timeout=5))
        assert error.code() is Code.INTERNAL
        assert "odd input" in error.details()
        held.fault = None
        await run.stub.Infer(tiny.make_request(), timeout=5)
        status = await run.stub.Status(pb.StatusRequest(), timeout=5)
        assert (status.failed, status.served) == (2, 1)
