"""Thousands of malformed requests: each is answered with a status, and the server goes on serving."""

from __future__ import annotations

import collections
import random
from typing import Any

import grpc
import tiny

from protos.ratchet.v1 import policy_pb2 as pb
from tools.hostile.messages import changed_fields, flipped

ALLOWED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.OK,
}


async def _outcome(call: Any) -> grpc.StatusCode:
    code, details = await call.code(), await call.details()
    assert "\n" not in (details or "")
    return code


async def test_malformed_requests_leave_the_server_serving(place, running):
    rng = random.Random(11)
    sound = [tiny.make_request(1), tiny.make_request(1, jpeg=True)]
    seen: collections.Counter[grpc.StatusCode] = collections.Counter()
    seen_raw: collections.Counter[grpc.StatusCode] = collections.Counter()
    no_message = 0
    async with running(place.config(bundle=place.bundle("a").path)) as run:
        infer = run.channel.unary_unary("/ratchet.v1.PolicyService/Infer")
        for i in range(3000):
            if i % 3:
                _, data = changed_fields(rng, rng.choice(sound))
                seen[await _outcome(infer(data, timeout=10))] += 1
                continue
            _, data = flipped(rng, rng.choice(sound))
            call = infer(data, timeout=10)
            seen_raw[await _outcome(call)] += 1
            no_message += "no message of this method" in (await call.details() or "")
        for _ in range(200):
            path = "".join(rng.choice("/.\x00a%~é") for _ in range(rng.randrange(400)))
            seen[await _outcome(run.stub.Load(pb.LoadRequest(path=path, backend=path[:3]), timeout=10))] += 1
            seen[await _outcome(run.stub.Swap(pb.SwapRequest(version=path), timeout=10))] += 1
        assert set(seen) <= ALLOWED
        assert set(seen_raw) <= ALLOWED
        assert seen[grpc.StatusCode.INVALID_ARGUMENT] > 1500
        reply = await run.stub.Infer(tiny.make_request(5), timeout=5)
        assert (reply.tick, reply.epoch) == (5, 1)
        status = await run.stub.Status(pb.StatusRequest(), timeout=5)
        assert status.failed == 0
        invalid = seen[grpc.StatusCode.INVALID_ARGUMENT] + seen_raw[grpc.StatusCode.INVALID_ARGUMENT]
        assert no_message > 100
        assert status.refused == invalid - no_message
