"""Pictures through shared memory: what a client may do with it, and what is left when the client dies."""

from __future__ import annotations

import asyncio
import gc
import mmap
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tiny
from lane_clients import frames, lane_of, light, refusal, request_for, until

from policies.config import CameraShape
from policy_server.lanes import DEPTH
from protos.frames import FrameError, LaneMemory, LaneShape
from protos.ratchet.v1 import policy_pb2 as pb
from runtime.frame_lane import FrameLane, map_lane

ROOT = Path(__file__).resolve().parents[2]
Code = grpc.StatusCode


async def test_pictures_in_shared_memory_are_what_the_policy_sees(place, running):
    async with running(place.config(bundle=place.bundle("a").path)) as run:
        lane = await lane_of(run)
        for brightness in range(20, 120, 10):  # more than there are slots
            placed = lane.place(frames(brightness))
            assert placed is not None
            assert await light(run, request_for(placed)) == pytest.approx(brightness, abs=0.01)
            lane.release(placed)
        mixed = request_for(placed)
        del mixed.frames[1:]
        mixed.images.append(tiny.make_request(brightness=10).images[1])
        assert await light(run, mixed) == pytest.approx(60.0, abs=0.01)
        status = await run.stub.Status(pb.StatusRequest(), timeout=5)
        (client,) = [client for client in status.clients if client.served]
        assert (client.shared, client.sent, status.lanes) == (21, 1, 1)
        assert lane.shared == 20
        await lane.close()
        await until(lambda: len(run.server.servicer.lanes) == 0, "the lane outlived its client's call")


async def test_no_more_than_the_slots_is_placed_and_a_picture_too_large_is_sent(place, running):
    async with running(place.config(bundle=place.bundle("a").path)) as run:
        lane = await lane_of(run)
        placed = [lane.place(frames(1)) for _ in range(DEPTH)]
        assert None not in placed
        assert lane.place(frames(1)) is None
        lane.release(placed[0])
        assert lane.place(frames(1, size=tiny.SIZE + 1)) is None
        assert lane.place(frames(1)) is not None
        assert (lane.shared, lane.sent) == (2 * DEPTH + 2, 4)
        await lane.close()


async def test_the_memory_cannot_be_taken_from_under_the_server(place, running):
    async with running(place.config(bundle=place.bundle("a").path)) as run:
        call = run.stub.OpenFrames(pb.OpenFramesRequest(session="evil"))
        told = await call.read()
        descriptor = os.open(f"/proc/{told.pid}/fd/{told.fd}", os.O_RDWR)
        for size in (0, 4096, told.size + 4096):
            with pytest.raises(PermissionError):
                os.ftruncate(descriptor, size)
        # The header is the client's to spoil: the server never looks at it again.
        os.pwrite(descriptor, b"\xff" * 4096, 0)
        memory = LaneMemory(mmap.mmap(descriptor, told.size), LaneShape(told.slots, told.slot_bytes))
        word = memory.write(0, frames(30)[0].image)
        request = tiny.make_request(brightness=30)
        request.lane = told.lane
        request.frames.add(camera="front", slot=0, word=word, height=tiny.SIZE, width=tiny.SIZE)
        del request.images[0]
        assert await light(run, request) == pytest.approx(30, abs=0.01)
        os.close(descriptor)
        call.cancel()


async def test_what_a_request_says_of_a_lane_is_checked(place, running):
    async with running(place.config(bundle=place.bundle("a").path)) as run:
        lane = await lane_of(run)
        placed = lane.place(frames(50))
        spoilt: dict[str, tuple[Callable[[pb.InferRequest], None], str]] = {
            "another's lane": (lambda r: setattr(r, "lane", r.lane ^ 1), "not open"),
            "slot beyond": (lambda r: setattr(r.frames[0], "slot", 2 * DEPTH), "slots"),
            "slot far beyond": (lambda r: setattr(r.frames[0], "slot", 2**32 - 1), "slots"),
            "height": (lambda r: setattr(r.frames[0], "height", 2**32 - 1), "expected"),
            "no word": (lambda r: setattr(r.frames[0], "word", 0), "reused"),
            "odd word": (lambda r: setattr(r.frames[0], "word", r.frames[0].word - 1), "reused"),
            "large word": (lambda r: setattr(r.frames[0], "word", 2**64 - 2), "reused"),
            "camera": (lambda r: setattr(r.frames[0], "camera", "back"), "back"),
            "camera twice": (lambda r: setattr(r.frames[0], "camera", "wrist"), "exactly"),
        }
        for what, (spoil, word) in spoilt.items():
            request = request_for(placed)
            spoil(request)
            code, details = await refusal(run, request)
            assert code in (Code.ABORTED, Code.INVALID_ARGUMENT), what
            assert word in details, what
        status = await run.stub.Status(pb.StatusRequest(), timeout=5)
        assert (status.refused, status.served) == (len(spoilt), 0)
        assert await light(run, request_for(placed)) == pytest.approx(50, abs=0.01)
        await lane.close()


def test_a_picture_that_changes_while_it_is_copied_is_torn():
    shape = LaneShape(2, 8 * 8 * 3)
    memory = LaneMemory(mmap.mmap(-1, shape.size), shape)
    image = np.full((8, 8, 3), 7, np.uint8)
    out = np.zeros_like(image)
    word = memory.write(1, image)
    memory.read(1, word, out)
    assert (out == 7).all()

    class Rewriting(np.ndarray):
        """The writer comes back while the reader has got as far as asking for its place to copy to."""

        def reshape(self, *_: Any) -> Any:
            memory.write(1, image + 1)
            return np.asarray(self).reshape(-1)

    with pytest.raises(FrameError, match="while it was read"):
        memory.read(1, word, out.view(Rewriting))
    with pytest.raises(FrameError, match="reused too soon"):
        memory.read(1, word, out)
    memory.read(1, word + 2, out)
    assert (out == 8).all()


@contextmanager
def as_descriptor(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR)
    yield descriptor
    os.close(descriptor)


async def test_only_the_servers_own_sealed_memory_is_mapped(place, running):
    async with running(place.config(bundle=place.bundle("a").path)) as run:
        call = run.stub.OpenFrames(pb.OpenFramesRequest(session="a"))
        told = await call.read()
        map_lane(told)

        def changed(**over: Any) -> pb.FrameLane:
            lane = pb.FrameLane()
            lane.CopyFrom(told)
            for name, value in over.items():
                setattr(lane, name, value)
            return lane

        path = place.root / "file"
        path.write_bytes(bytes(told.size))
        with as_descriptor(str(path)) as unsealed, as_descriptor("/dev/zero") as device:
            for lane, word in (
                (changed(token=bytes(32)), "not the lane"),
                (changed(token=told.token[:8]), "not the lane"),
                (changed(pid=2**31 - 1), "cannot be opened"),
                (changed(fd=unsealed), "seal|mapped"),
                (changed(fd=device), "not to be found"),
                (changed(size=told.size + 4096), "shape"),
                (changed(slots=told.slots - 1), "shape"),
                (changed(slots=2**31, size=2**62), "out of bounds"),
                (changed(slot_bytes=0), "out of bounds"),
            ):
                with pytest.raises(FrameError, match=word):
                    map_lane(lane)
        call.cancel()


async def test_lanes_are_bounded_and_given_back_when_idle(place, running):
    bundle = place.bundle("a")
    async with running(place.config(bundle=bundle.path, max_lanes=3, idle_s=0.3)) as run:
        lanes = run.server.servicer.lanes
        first = [await lane_of(run, "a"), await lane_of(run, "a")]
        third = FrameLane("a")
        third.open(run.stub, run.channel)
        await until(lambda: "has shared memory already" in third.state, third.state)
        other = await lane_of(run, "b")
        fourth = FrameLane("c")
        fourth.open(run.stub, run.channel)
        await until(lambda: "MiB already" in fourth.state, fourth.state)
        assert fourth.place(frames(1)) is None
        await until(lambda: len(lanes) == 0, "idle lanes were kept")
        await until(lambda: not other.is_open, "the client still thinks its lane open")
        for lane in [*first, other, third, fourth]:
            await lane.close()


async def test_a_policy_with_large_pictures_gets_lanes_only_within_the_limit(place, running):
    cameras = (CameraShape(name="front", height=512, width=512),)
    bundle = place.bundle("large", cameras=cameras)
    async with running(place.config(bundle=bundle.path, max_lane_mib=1)) as run:
        lane = FrameLane("a")
        lane.open(run.stub, run.channel)
        await until(lambda: "MiB already" in lane.state, lane.state)
        await lane.close()


async def test_a_killed_client_leaves_no_lane_behind(place, running):
    script = textwrap.dedent(f"""
        import asyncio, grpc
        from protos.ratchet.v1 import policy_pb2 as pb, policy_pb2_grpc
        from runtime.frame_lane import FrameLane

        async def main():
            async with grpc.aio.insecure_channel({place.address!r}) as channel:
                lane = FrameLane("doomed")
                lane.open(policy_pb2_grpc.PolicyServiceStub(channel), channel)
                while not lane.is_open:
                    await asyncio.sleep(0.01)
                print("open", flush=True)
                await asyncio.sleep(60)

        asyncio.run(main())
    """)
    gc.collect()  # what other tests have mapped in this process
    before = _frame_descriptors()
    async with running(place.config(bundle=place.bundle("a").path)) as run:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, cwd=ROOT, stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        assert await child.stdout.readline() == b"open\n"
        assert len(run.server.servicer.lanes) == 1
        assert _frame_descriptors() > before
        child.kill()
        await child.wait()
        await until(lambda: len(run.server.servicer.lanes) == 0, "the lane outlived its client")
        await until(lambda: _frame_descriptors() == before, "its memory was not given back")


def _frame_descriptors() -> int:
    links = [Path(entry.path) for entry in os.scandir("/proc/self/fd")]
    return sum("ratchet-frames" in str(link.readlink()) for link in links if link.is_symlink())
