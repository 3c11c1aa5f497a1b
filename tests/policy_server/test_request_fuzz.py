"""Thousands of malformed requests: each is answered with a status, and the server goes on serving."""

from __future__ import annotations

import collections
import random
from typing import Any

import grpc
import tiny

from protos.ratchet.v1 import policy_pb2 as pb

ALLOWED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.OK,
}


def _mutate(message: pb.InferRequest, rng: random.Random) -> pb.InferRequest:
    """Change one to three fields to something else of the same type."""
    request = pb.InferRequest()
    request.CopyFrom(message)
    for _ in range(rng.randint(1, 3)):
        image = request.images[rng.randrange(len(request.images))] if request.images else None
        choice = rng.randrange(10)
        if choice == 0:
            request.state.dtype = rng.randrange(0, 6)
        elif choice == 1:
            request.state.shape[:] = [rng.choice([0, 1, 6, 2**32 - 1]) for _ in range(rng.randrange(6))]
        elif choice == 2:
            request.state.data = rng.randbytes(rng.choice([0, 1, 23, 24, 25, 4096]))
        elif choice == 3:
            request.session = "\u00e9" * rng.choice([0, 127, 128, 129, 5000])
        elif image is None or choice == 4:
            request.images.add(camera=rng.choice(["front", "wrist", "", "x" * 300]))
        elif choice == 5:
            image.height, image.width = rng.choice([(0, 0), (2**31, 2**31), (32, 31), (32, 32)])
        elif choice == 6:
            image.data = rng.randbytes(rng.choice([0, 10, 3071, 3072, 3073]))
        elif choice == 7:
            image.encoding = rng.randrange(0, 5)
        elif choice == 8:
            image.camera = rng.choice(["front", "wrist", "\x00", "../front"])
        else:
            request.images.remove(image)
    return request


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
        raw = run.channel.unary_unary("/ratchet.v1.PolicyService/Infer")
        for i in range(3000):
            if i % 3:
                seen[await _outcome(run.stub.Infer(_mutate(rng.choice(sound), rng), timeout=10))] += 1
                continue
            data = bytearray(rng.choice(sound).SerializeToString())
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(min(len(data), 200))] = rng.randrange(256)
            call = raw(bytes(data), timeout=10)
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
