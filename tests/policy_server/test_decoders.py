"""Decoding is under the request's deadline: nobody waits for a decoder longer, and neither does closing."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import tiny

from policy_server import desk
from policy_server.decoders import CLOSE_S, Decoders
from policy_server.errors import ExpiredError, InferenceError, RequestError
from policy_server.spec import Inputs, check_request
from protos.ratchet.v1 import common_pb2
from protos.ratchet.v1 import policy_pb2 as pb
from tests.runtime.waiting import eventually
from tools.hostile.scans import many_scans

Code = grpc.StatusCode
ROOT = Path(__file__).resolve().parents[2]


class Busy:
    """Requests of session "slow" keep their decoder until released; ``decoded`` are whose turn came."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.decoded: list[str] = []

    def check(self, request: pb.InferRequest, *rest: Any) -> Inputs:
        self.decoded.append(request.session)
        if request.session == "slow":
            self.release.wait(20)
        return check_request(request, *rest)


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Busy]:
    busy = Busy()
    monkeypatch.setattr(desk, "check_request", busy.check)
    yield busy
    busy.release.set()


def jpeg(session: str, deadline_ms: float = 20_000.0) -> pb.InferRequest:
    request = tiny.make_request(1, jpeg=True, session=session)
    request.deadline_ms = deadline_ms
    return request


async def occupy(run: Any, busy: Busy, deadline_ms: float = 20_000.0) -> list[asyncio.Future[Any]]:
    """Both decoders have something that takes long."""
    calls = [asyncio.ensure_future(run.stub.Infer(jpeg("slow", deadline_ms), timeout=20)) for _ in range(2)]
    await eventually(lambda: busy.decoded == ["slow"] * 2)
    return calls


async def test_what_waits_for_a_decoder_past_its_deadline_is_answered_then_and_never_decoded(
    place, running, busy
):
    async with running(place.config(bundle=place.bundle("a").path)) as run:
        slow = await occupy(run, busy)
        unary = asyncio.ensure_future(run.refusal(run.stub.Infer(jpeg("unary", 200), timeout=20)))
        call = run.stub.InferStream(tiny.stream([jpeg("stream", 200)], asyncio.Event()), timeout=20)
        async with asyncio.timeout(5):
            reply, error = await call.read(), await unary
        assert reply.status == Code.DEADLINE_EXCEEDED.value[0]
        assert "decoded" in reply.reason
        assert error.code() is Code.DEADLINE_EXCEEDED
        assert not busy.release.is_set()
        busy.release.set()
        await asyncio.gather(*slow)
        await run.stub.Infer(jpeg("after"), timeout=20)
        assert busy.decoded == ["slow", "slow", "after"]
        status = await run.status()
        assert (status.served, status.dropped) == (3, 2)
        call.cancel()


async def test_what_is_being_decoded_at_its_deadline_is_answered_then(place, running, busy):
    async with running(place.config(bundle=place.bundle("a").path)) as run:
        for call in await occupy(run, busy, 300):
            async with asyncio.timeout(5):
                assert (await run.refusal(call)).code() is Code.DEADLINE_EXCEEDED
        assert not busy.release.is_set()


async def test_closing_does_not_wait_for_what_is_decoded(place, running, busy):
    async with running(place.config(bundle=place.bundle("a").path, stop_grace_s=0.1)) as run:
        slow = await occupy(run, busy)
        begin = time.monotonic()
        await run.server.stop()
        assert time.monotonic() - begin < CLOSE_S + 5
        assert not busy.release.is_set()
        await asyncio.gather(*slow, return_exceptions=True)


def test_a_decoder_that_does_not_come_back_keeps_no_process():
    code = (
        "import asyncio, time\n"
        "from policy_server.decoders import Decoders\n"
        "async def main():\n"
        "    decoders = Decoders(1)\n"
        "    begun = asyncio.Event()\n"
        "    def decode():\n"
        "        loop.call_soon_threadsafe(begun.set)\n"
        "        time.sleep(60)\n"
        "    loop = asyncio.get_running_loop()\n"
        "    waiting = loop.create_task(decoders.run(decode, time.monotonic_ns() + 10**11))\n"
        "    await begun.wait()\n"
        "    waiting.cancel()\n"
        "    decoders.close()\n"
        "asyncio.run(main())\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=30, check=True)


async def test_a_refused_request_is_kept_by_nobody():
    decoders = Decoders(1)

    class Request:
        def decode(self) -> Inputs:
            raise RequestError("it is not as it should be")

    request = Request()
    kept = weakref.ref(request)
    gc.disable()
    try:
        with pytest.raises(RequestError):
            await decoders.run(request.decode, time.monotonic_ns() + 10**10)
        del request
        await eventually(lambda: kept() is None)
    finally:
        gc.enable()
        decoders.close()


async def test_what_comes_to_its_turn_late_or_after_closing_is_not_decoded():
    """Even when the event loop had no time to give it up."""
    decoders = Decoders(1)
    release, done, decoded = threading.Event(), threading.Event(), []
    now, second = time.monotonic_ns(), 10**9
    runs = [
        asyncio.ensure_future(decoders.run(decode, deadline_ns))
        for decode, deadline_ns in (
            (lambda: release.wait(10), now + 20 * second),
            (lambda: decoded.append("late"), now + second // 20),
            (done.set, now + 20 * second),
        )
    ]
    await asyncio.sleep(0)
    threading.Event().wait(0.1)
    release.set()
    assert done.wait(10)
    assert isinstance((await asyncio.gather(*runs, return_exceptions=True))[1], ExpiredError)
    assert decoded == []
    decoders.close()
    decoders.close()
    with pytest.raises(InferenceError, match="stopping"):
        await decoders.run(lambda: pytest.fail("was decoded"), time.monotonic_ns() + 10**10)


async def test_pictures_of_many_scans_keep_nobody_waiting(place, running):
    async with running(place.config(bundle=place.bundle("a").path)) as run:
        hostile = tiny.make_request(1, session="hostile")
        for image in hostile.images:
            image.encoding = common_pb2.IMAGE_ENCODING_JPEG
            image.data = many_scans(image.height, image.width, 2000)
        calls = [run.refusal(run.stub.Infer(hostile, timeout=20)) for _ in range(4)]
        reply = await run.stub.Infer(jpeg("honest"), timeout=5)
        assert reply.status == 0
        for error in await asyncio.gather(*calls):
            assert error.code() is Code.INVALID_ARGUMENT
            assert "progressive" in error.details()
