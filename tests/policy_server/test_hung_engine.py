"""An engine process that stands still is ended and replaced; one that is only slow is not."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import tiny

from policy_server.costs import BatchCosts
from policy_server.engine_process import EngineProcess
from policy_server.hanging import LIMIT_S, LOOK_S, Patience, Seen, look_at
from policy_server.process_session import load_session
from protos.ratchet.v1 import policy_pb2 as pb
from tests.processes import runs, state

Code = grpc.StatusCode


def given_up_after(seen: Any, expected_s: float, threads: int = 1) -> tuple[float, str]:
    """When patience ends, and why, with a process that ``seen(t)`` describes."""
    now = 0.25
    patience = Patience(lambda: seen(now), expected_s, threads)
    while True:
        now += LOOK_S
        reason = patience.reason(now)
        if reason is not None:
            return now, reason


def test_what_stands_still_is_given_up_soon() -> None:
    after, reason = given_up_after(lambda _: Seen(7.0, False), 0.02)
    assert after < 1.0
    assert "stands still" in reason
    # A slower policy, maybe on a GPU, during which the process has nothing to do.
    after, _ = given_up_after(lambda _: Seen(7.0, False), 0.3)
    assert 1.2 <= after < 1.5


def test_what_waits_for_the_processor_or_gets_little_of_it_is_given_time() -> None:
    for seen in (lambda _: Seen(7.0, True), lambda t: Seen(0.1 * t, False)):
        after, reason = given_up_after(seen, 0.02)
        assert after >= LIMIT_S
        assert "did not answer within" in reason


def test_what_goes_round_in_circles_is_given_up_by_what_it_has_computed() -> None:
    after, reason = given_up_after(lambda t: Seen(t, True), 0.02)
    assert 1.5 <= after <= 2.0
    assert "computed" in reason
    after, _ = given_up_after(lambda t: Seen(2 * t, True), 0.2, threads=2)
    assert 4.0 <= after <= 4.5, "a large batch, on two threads"


def test_the_kernel_says_who_wants_the_processor() -> None:
    code = """
import sys, threading
def compute():
    while True: pass
sys.stdin.readline()
threading.Thread(target=compute).start()  # as an engine's: the first thread only waits
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as child:
        try:
            _until(lambda: state(child.pid) == "S")
            asleep = look_at(child.pid)
            assert not asleep.wants
            assert child.stdin is not None
            child.stdin.write(b"\n")
            child.stdin.flush()
            _until(lambda: look_at(child.pid).cpu_s > asleep.cpu_s)
            assert look_at(child.pid).wants
            child.send_signal(signal.SIGSTOP)
            _until(lambda: not look_at(child.pid).wants)
        finally:
            child.kill()
    assert look_at(child.pid) == Seen(0.0, False)


def test_what_runs_in_spare_time_may_stand_still_for_long(place) -> None:
    config, bundle = place.config(isolation="process"), place.bundle("a")
    engine = EngineProcess()
    try:
        session, _ = load_session(engine, engine.open(bundle.path, config.trust), "onnx", config)
        seen = (
            np.zeros((1, 6), np.float32),
            {c.name: np.zeros((1, 32, 32, 3), np.uint8) for c in tiny.CAMERAS},
        )
        os.kill(engine.pid, signal.SIGSTOP)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(session.infer_idle, *seen)
            time.sleep(1.2)  # one that serves would be given up by now
            os.kill(engine.pid, signal.SIGCONT)
            assert answer.result(20).actions.shape == (1, tiny.CHUNK, 6)
    finally:
        engine.close()


async def test_a_stopped_engine_is_replaced_and_its_requests_end_at_their_deadlines(
    place, running, monkeypatch
) -> None:
    had: list[int] = []

    class Noted(Patience):
        def __init__(self, look: Any, expected_s: float, threads: int) -> None:
            had.append(threads)
            super().__init__(look, expected_s, threads)

    monkeypatch.setattr("policy_server.engine_process.Patience", Noted)
    bundle = place.bundle("a")
    async with running(place.config(bundle=bundle.path, isolation="process", threads=2)) as run:
        await run.stub.Infer(tiny.make_request(1), timeout=20)
        pid = (await run.stub.Status(pb.StatusRequest(), timeout=5)).slots[0].pid
        usual = BatchCosts()
        usual.ran(1, 300.0)
        run.batching(usual)
        os.kill(pid, signal.SIGSTOP)
        begin = time.monotonic()
        stream = run.stub.InferStream(timeout=30)
        request = tiny.make_request(2, session="stream")
        request.deadline_ms = 400
        await stream.write(request)
        late = await stream.read()
        assert late.status == Code.DEADLINE_EXCEEDED.value[0]
        assert "while the request was computed" in late.reason
        stream.cancel()
        await asyncio.to_thread(_until, lambda: not runs(pid))
        assert time.monotonic() - begin > 1.2, "four times what its runs usually take"
        assert time.monotonic() - begin < LIMIT_S, "that is for whatever may be at work"
        while True:
            try:
                reply = await run.stub.Infer(tiny.make_request(4), timeout=30)
                break
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)
        now = await run.stub.Status(pb.StatusRequest(), timeout=5)
        assert reply.version == bundle.version
        assert now.slots[0].pid != pid
        assert [event.kind for event in now.events] == ["revived"]
        assert set(had) == {2}, "it may compute on as many threads at once"


def _until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
