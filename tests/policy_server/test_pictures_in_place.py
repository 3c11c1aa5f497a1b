"""An engine process reads a client's pictures where they lie: whatever that client does meanwhile."""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tiny
from lane_clients import frames, lane_of, light, request_for, until

from policies.config import CameraShape
from policy_server import in_place
from policy_server.costs import BatchCosts
from policy_server.engine_lanes import EngineLanes
from protos.frames import FrameError, LaneMemory, LaneShape
from protos.ratchet.v1 import policy_pb2 as pb
from runtime.frame_lane import FrameLane

Code = grpc.StatusCode


def mapped(pid: int) -> int:
    """Lanes that a process has mapped."""
    return Path(f"/proc/{pid}/maps").read_text().count("ratchet-frames")


def engine_of(run: Any) -> int:
    return int(run.server.servicer.slots.serving.slot.pid)


async def during_a_run(run: Any, request: pb.InferRequest, act: Coroutine[Any, Any, None]) -> Any:
    """Ask, ``act`` while the engine has the request and stands still, and wait for the answer."""
    engine = engine_of(run)
    os.kill(engine, signal.SIGSTOP)
    asked = asyncio.ensure_future(run.stub.Infer(request, timeout=20))
    try:
        await run.pending(1)
        await asyncio.sleep(0.05)  # until it has been told, too
        await act
    finally:
        with suppress(ProcessLookupError):
            os.kill(engine, signal.SIGCONT)
    return await asked


async def _observed(run: Any, lane: FrameLane) -> None:
    """A shadow gets a copy while the run is shown to it; afterwards nobody keeps the client's pictures."""
    worker, seen = run.server.servicer.worker, []

    async def watch(*_: object) -> None:
        seen.append(await worker.observed(0))

    worker.watch = watch
    placed = lane.place(frames(110))
    await light(run, request_for(placed))
    lane.release(placed)
    await until(lambda: bool(seen), "nothing was shown")
    worker.watch = None
    ((state, images),) = seen
    assert state.shape == (1, 6)
    assert (images["wrist"] == 110).all()
    await asyncio.sleep(0)
    assert (await worker.observed(0))[0].size == 0


async def test_the_engine_reads_a_clients_memory_and_lets_go_of_it(place: Any, running: Any) -> None:
    config = place.config(bundle=place.bundle("a").path, isolation="process")
    async with running(config) as run:
        run.batching(BatchCosts({1: 5_000.0}))  # nobody takes one that is stopped here for one that hangs
        lane = await lane_of(run)
        for brightness in range(20, 120, 10):  # more than there are slots
            placed = lane.place(frames(brightness))
            assert await light(run, request_for(placed)) == pytest.approx(brightness, abs=0.01)
            lane.release(placed)
        assert mapped(engine_of(run)) == 1
        await _observed(run, lane)
        placed = lane.place([frames(20)[0], frames(60)[1]])
        assert await light(run, request_for(placed)) == pytest.approx(40, abs=0.01), "each its own"
        lane.release(placed)
        await _changed_meanwhile(run, lane)
        await _of_two_cameras_one_in_the_message(run, lane)
        await _closed_meanwhile(run, lane)
        await _forgotten(run)
        await _killed_meanwhile(run)


@pytest.mark.parametrize("where", ["_outcome", "_shared"])
async def test_a_fault_of_the_server_s_own_costs_one_request(
    place: Any, running: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Before the run begins, and after it."""

    def fault(*_: object) -> None:
        raise KeyError("nobody thought of it")

    config = place.config(bundle=place.bundle("a").path, isolation="process")
    async with running(config) as run:
        lane = await lane_of(run)
        with monkeypatch.context() as broken:
            broken.setattr(in_place, where, fault)
            placed = lane.place(frames(40))
            refused = await run.refusal(run.stub.Infer(request_for(placed), timeout=20))
            assert "a fault of the server" in refused.details()
            lane.release(placed)
        placed = lane.place(frames(40))
        assert await light(run, request_for(placed)) == pytest.approx(40, abs=0.01)


async def _changed_meanwhile(run: Any, lane: FrameLane) -> None:
    async def change(placed: Any, which: int) -> None:
        placed.memory.write(placed.frames[which].slot, frames(90)[0].image)

    for which in (0, 1):
        placed = lane.place(frames(40))
        with pytest.raises(grpc.aio.AioRpcError, match="while it was read") as caught:
            await during_a_run(run, request_for(placed), change(placed, which))
        assert caught.value.code() is Code.ABORTED
        lane.release(placed)
    status = await run.status()
    assert (status.refused, status.failed) == (2, 0)


async def _of_two_cameras_one_in_the_message(run: Any, lane: FrameLane) -> None:
    placed = lane.place(frames(50))
    mixed = request_for(placed)
    del mixed.frames[1:]
    mixed.images.append(tiny.make_request(brightness=10).images[1])
    assert await light(run, mixed) == pytest.approx(30.0, abs=0.01)
    lane.release(placed)


async def _closed_meanwhile(run: Any, lane: FrameLane) -> None:
    """What runs is answered, the server waits for nobody, and nothing is left."""
    lanes = run.server.servicer.lanes
    placed = lane.place(frames(70))

    async def close() -> None:
        await lane.close()
        await until(lambda: len(lanes) == 0, "the lane outlived its client's call")
        await run.status()

    reply = await during_a_run(run, request_for(placed), close())
    assert float(tiny.actions(reply)[0, 0]) == pytest.approx(140 / 255, abs=1e-4)
    await until(lambda: mapped(engine_of(run)) == 0, "the engine kept a closed lane")


async def _forgotten(run: Any) -> None:
    """An engine that does not have a lane that is open gets the pictures copied."""
    lane = await lane_of(run, "another")
    placed = lane.place(frames(20))
    assert placed is not None
    assert await light(run, request_for(placed)) == pytest.approx(20, abs=0.01)
    run.server.servicer.slots.serving.slot.session._engine.forget_lane(placed.lane)
    lane.release(placed)
    placed = lane.place(frames(60))
    assert await light(run, request_for(placed)) == pytest.approx(60, abs=0.01)
    assert mapped(engine_of(run)) == 0
    await lane.close()


async def _killed_meanwhile(run: Any) -> None:
    """Its request fails at once, its lane is nobody's trouble, and the bundle is loaded again."""
    lane = await lane_of(run, "third")
    placed, engine = lane.place(frames(20)), engine_of(run)

    async def kill() -> None:
        os.kill(engine, signal.SIGKILL)

    with pytest.raises(grpc.aio.AioRpcError, match="is gone and was ended"):
        await during_a_run(run, request_for(placed), kill())
    await until(lambda: engine_of(run) != engine, "the bundle was not loaded again")
    lane.release(placed)
    placed = lane.place(frames(60))
    assert await light(run, request_for(placed)) == pytest.approx(60, abs=0.01)
    assert mapped(engine_of(run)) == 1
    await _stopped_meanwhile(run, lane)


async def _stopped_meanwhile(run: Any, lane: FrameLane) -> None:
    """A server that stops during a run waits neither for it nor for who wants the engine next."""
    session = run.server.servicer.slots.serving.slot.session
    placed = lane.place(frames(20))

    async def stop() -> None:
        waits = asyncio.create_task(asyncio.to_thread(_lock_of, session))
        await asyncio.sleep(0.01)
        assert not waits.done()
        run.server.servicer.worker.stop()
        async with asyncio.timeout(10):
            await waits
        asked.cancel()

    asked = asyncio.ensure_future(during_a_run(run, request_for(placed), stop()))
    with suppress(asyncio.CancelledError):
        await asked
    assert not session.alive
    await lane.close()


def _lock_of(session: Any) -> None:
    with session.staged(1):
        pass


SHAPE = LaneShape(2, 32 * 32 * 3)
CAMERA = (CameraShape(name="front", height=32, width=32),)


@contextmanager
def memory(size: int, seals: int) -> Iterator[int]:
    fd = os.memfd_create("lane", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    yield fd
    os.close(fd)


def test_an_engine_maps_sealed_memory_of_the_right_size_only_and_never_writes_there() -> None:
    sealed, lanes = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW, EngineLanes()
    with memory(SHAPE.size, sealed) as fd:
        lanes.map(1, SHAPE.slots, SHAPE.slot_bytes, fd)
    with memory(SHAPE.size, fcntl.F_SEAL_GROW) as fd:
        lanes.map(2, SHAPE.slots, SHAPE.slot_bytes, fd)
    with memory(SHAPE.size - 4096, sealed) as fd:
        lanes.map(3, SHAPE.slots, SHAPE.slot_bytes, fd)
    with memory(SHAPE.size, sealed) as fd:
        lanes.map(4, 2**40, 2**40, fd)
    assert [lanes.images(lane, [0], CAMERA) is None for lane in range(5)] == [True, False, True, True, True]
    images = lanes.images(1, [1], CAMERA)
    assert images is not None
    assert images["front"].shape == (1, 32, 32, 3)
    assert not images["front"].flags.writeable
    larger = (CameraShape(name="front", height=32, width=64),)
    for slot, cameras in ((2, CAMERA), (-1, CAMERA), (0, larger)):
        with pytest.raises(FrameError, match="outside the lane"):
            lanes.images(1, [slot], cameras)
    lanes.forget(1)
    lanes.forget(1)
    assert lanes.images(1, [0], CAMERA) is None


def test_words_are_looked_at_before_and_after() -> None:
    lane = LaneMemory(mmap.mmap(-1, SHAPE.size), SHAPE)
    word = lane.write(0, np.zeros((32, 32, 3), np.uint8))
    lane.begin(0, word)
    lane.end(0, word)
    lane.write(0, np.ones((32, 32, 3), np.uint8))
    with pytest.raises(FrameError, match="while it was read"):
        lane.end(0, word)
    with pytest.raises(FrameError, match="too soon"):
        lane.begin(0, word)
