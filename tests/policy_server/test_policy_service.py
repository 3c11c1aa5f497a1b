"""The service over a real socket: right answers, typed refusals, health, reflection."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest
import tiny
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from policy_server.server import SERVICE
from protos.codec import decode_tensor
from protos.ratchet.v1 import policy_pb2 as pb

Code = grpc.StatusCode


@pytest.mark.parametrize("jpeg", [False, True])
async def test_infer_answers_what_the_policy_says(place, running, jpeg: bool):
    bundle = place.bundle("a", offset=2.0)
    async with running(place.config(bundle=bundle.path)) as run:
        request = tiny.make_request(tick=7, state=0.5, brightness=102, jpeg=jpeg)
        reply = await run.stub.Infer(request, timeout=5)
        actions = decode_tensor(reply.actions, "actions", np.float32, (tiny.CHUNK, 6))
        images = {c.name: np.full((4, 4, 3), 102) for c in tiny.CAMERAS}
        np.testing.assert_allclose(actions, tiny.expected(np.full(6, 0.5), images, 2.0), atol=2e-3)
        assert decode_tensor(reply.features, "features", np.float32, (6,)).shape == (6,)
        assert (reply.request_id, reply.tick, reply.observation_ns) == (8, 7, 7 * 33_333_333)
        assert (reply.version, reply.epoch) == (bundle.version, 1)
        assert reply.exec_ms > 0


async def test_a_stream_answers_in_order(place, running):
    async with running(place.config(bundle=place.bundle("a").path)) as run:

        async def requests():
            for tick in range(50):
                yield tiny.make_request(tick, state=tick)

        ticks = []
        async for reply in run.stub.InferStream(requests(), timeout=20):
            ticks.append(reply.tick)
            first = decode_tensor(reply.actions, "actions", np.float32, (None, 6))[0, 0]
            assert first == pytest.approx(reply.tick)
        assert ticks == list(range(50))


def _spoil(what: str) -> pb.InferRequest:
    request = tiny.make_request()
    if what == "state dtype":
        request.state.dtype = 2
    elif what == "state shape":
        request.state.shape[:] = [7]
    elif what == "state bytes":
        request.state.data = request.state.data[:-1]
    elif what == "state nan":
        request.state.data = np.full(6, np.nan, dtype=np.float32).tobytes()
    elif what == "state missing":
        request.ClearField("state")
    elif what == "camera missing":
        del request.images[0]
    elif what == "camera twice":
        request.images.append(request.images[0])
    elif what == "camera unknown":
        request.images[0].camera = "back"
    elif what == "image size":
        request.images[0].height = 31
    elif what == "image bytes":
        request.images[0].data = request.images[0].data[:-3]
    elif what == "image encoding":
        request.images[0].encoding = 0
    elif what == "jpeg garbage":
        request.images[0].encoding = 2
    elif what == "jpeg lies":
        request = tiny.make_request(jpeg=True)
        request.images[0].data = request.images[0].data.replace(b"\x00\x20\x00\x20", b"\xff\xff\xff\xff", 1)
    elif what == "session":
        request.session = "x" * 1000
    return request


SPOILT = {
    "state dtype": "float64",
    "state shape": "shape",
    "state bytes": "23 bytes",
    "state nan": "NaN",
    "state missing": "dtype",
    "camera missing": "wrist",
    "camera twice": "exactly",
    "camera unknown": "back",
    "image size": "32×31",
    "image bytes": "bytes",
    "image encoding": "encoding",
    "jpeg garbage": "JPEG",
    "jpeg lies": "65535",
    "session": "1000",
}


async def test_malformed_requests_are_refused_with_their_reason_and_counted(place, running):
    async with running(place.config(bundle=place.bundle("a").path)) as run:
        for what, word in SPOILT.items():
            error = await run.refusal(run.stub.Infer(_spoil(what), timeout=5))
            assert error.code() is Code.INVALID_ARGUMENT, what
            assert word in error.details(), what
            assert "\n" not in error.details()
        status = await run.stub.Status(pb.StatusRequest(), timeout=5)
        assert (status.refused, status.served, status.failed) == (len(SPOILT), 0, 0)
        assert (await run.stub.Infer(tiny.make_request(), timeout=5)).epoch == 1


async def test_a_message_beyond_the_limit_is_refused_before_it_is_read(place, running):
    async with running(place.config(bundle=place.bundle("a").path, max_message_mib=1)) as run:
        request = tiny.make_request()
        request.images[0].data = bytes(2 * 2**20)
        error = await run.refusal(run.stub.Infer(request, timeout=5))
        assert error.code() is Code.RESOURCE_EXHAUSTED
        await run.stub.Infer(tiny.make_request(), timeout=5)


async def test_without_a_bundle_it_listens_and_says_so(place, running):
    async with running(place.config()) as run:
        error = await run.refusal(run.stub.Infer(tiny.make_request(), timeout=5))
        assert error.code() is Code.UNAVAILABLE
        assert "no bundle" in error.details()
        health = health_pb2_grpc.HealthStub(run.channel)
        check = health_pb2.HealthCheckRequest(service=SERVICE)
        assert (await health.Check(check, timeout=5)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        bundle = place.bundle("a")
        await run.stub.Load(pb.LoadRequest(path=str(bundle.path), activate=True), timeout=20)
        for _ in range(100):
            if (await health.Check(check, timeout=5)).status == health_pb2.HealthCheckResponse.SERVING:
                break
            await asyncio.sleep(0.05)
        else:
            pytest.fail("never became SERVING")


async def test_reflection_lists_the_service_and_can_be_left_out(place, running):
    ask = reflection_pb2.ServerReflectionRequest(list_services="")

    async def one():
        yield ask

    async with running(place.config()) as run:
        stub = reflection_pb2_grpc.ServerReflectionStub(run.channel)
        async for reply in stub.ServerReflectionInfo(one(), timeout=5):
            names = {service.name for service in reply.list_services_response.service}
        assert SERVICE in names
    async with running(place.config(reflection=False)) as run:
        stub = reflection_pb2_grpc.ServerReflectionStub(run.channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.ServerReflectionInfo(one(), timeout=5):
                pass
        assert caught.value.code() is Code.UNIMPLEMENTED


async def test_status_tells_what_is_resident(place, running):
    a, b = place.bundle("a"), place.bundle("b", 1.0)
    async with running(place.config(bundle=a.path)) as run:
        await run.stub.Load(pb.LoadRequest(path=str(b.path), backend="onnx-int8"), timeout=20)
        status = await run.stub.Status(pb.StatusRequest(manifests=True), timeout=5)
        assert [(s.version, s.backend, s.active) for s in status.slots] == [
            (a.version, "onnx", True),
            (b.version, "onnx-int8", False),
        ]
        assert list(status.slots[0].cameras) == ["front", "wrist"]
        assert '"name":"tiny"' in status.slots[0].manifest_json
        brief = await run.stub.Status(pb.StatusRequest(), timeout=5)
        assert brief.slots[0].manifest_json == ""
