"""How many requests, and how many bytes of them, may wait; for each client and in all."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import tiny

from policies.config import CameraShape
from protos.codec import encode_image
from protos.ratchet.v1 import policy_pb2 as pb

Code = grpc.StatusCode


async def test_more_requests_than_may_wait_are_refused_at_once(place, running):
    async with running(place.config(bundle=place.bundle("a").path, max_waiting=2)) as run:
        held = run.hold()
        held.release.clear()
        waiting = [asyncio.ensure_future(run.stub.Infer(tiny.make_request(t), timeout=20)) for t in range(3)]
        await asyncio.to_thread(held.entered.wait, 5)
        await run.pending(3)
        error = await run.refusal(run.stub.Infer(tiny.make_request(9), timeout=5))
        assert error.code() is Code.RESOURCE_EXHAUSTED
        assert "waiting" in error.details()
        held.release.set()
        assert [reply.tick for reply in await asyncio.gather(*waiting)] == [0, 1, 2]


async def test_the_bytes_of_what_waits_are_bounded(place, running):
    cameras = tuple(CameraShape(name=c.name, height=256, width=256) for c in tiny.CAMERAS)
    image = np.zeros((256, 256, 3), np.uint8)

    def large(session: str, jpeg: bool = False) -> pb.InferRequest:
        request = tiny.of(session)
        quality = 90 if jpeg else None
        request.images[0].CopyFrom(encode_image("front", image, jpeg_quality=quality))
        request.images[1].CopyFrom(encode_image("wrist", image, jpeg_quality=quality))
        return request

    config = place.config(
        bundle=place.bundle("large", cameras=cameras).path, max_message_mib=1, max_waiting_mib=1
    )
    async with running(config) as run:
        held = run.hold()
        held.release.clear()
        go = asyncio.Event()
        first = run.stub.InferStream(tiny.stream([large("a")], go), timeout=20)
        second = asyncio.ensure_future(run.stub.Infer(large("b"), timeout=20))
        await run.pending(2)
        for jpeg in (False, True):  # however small one is as it comes
            error = await run.refusal(run.stub.Infer(large("c", jpeg), timeout=5))
            assert error.code() is Code.RESOURCE_EXHAUSTED
            assert "at most 1 MiB" in error.details()
            assert "max_waiting_mib" in error.details()
        status = await run.stub.Status(pb.StatusRequest(), timeout=5)
        assert (status.refused, status.waiting) == (2, 1)
        held.release.set()
        assert (await first.read()).status == 0
        await second
        go.set()
        assert (await run.stub.Infer(large("c"), timeout=5)).status == 0, "they are gone again"
        padded = large("c")
        padded.images[0].data += bytes(800_000 - len(padded.images[0].data))
        error = await run.refusal(run.stub.Infer(padded, timeout=5))
        assert error.code() is Code.INVALID_ARGUMENT
        assert "cameras need at most" in error.details()


async def test_sessions_and_their_requests_are_bounded(place, running):
    async with running(place.config(bundle=place.bundle("a").path, max_clients=2, max_in_flight=2)) as run:
        held = run.hold()
        held.release.clear()
        calls = [asyncio.ensure_future(run.stub.Infer(tiny.of("a", n), timeout=20)) for n in range(2)]
        await run.pending(2)
        error = await run.refusal(run.stub.Infer(tiny.of("a"), timeout=5))
        assert error.code() is Code.RESOURCE_EXHAUSTED
        assert "'a' has 2 requests" in error.details()
        calls.append(asyncio.ensure_future(run.stub.Infer(tiny.of("b"), timeout=20)))
        await run.pending(3)
        error = await run.refusal(run.stub.Infer(tiny.of("c"), timeout=5))
        assert error.code() is Code.RESOURCE_EXHAUSTED
        assert "clients" in error.details()
        held.release.set()
        await asyncio.gather(*calls)
