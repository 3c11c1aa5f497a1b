"""A client of shared memory as the tests need it: open a lane, put pictures there, ask about them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
import tiny

from hal.types import Frame
from protos.codec import decode_tensor
from protos.ratchet.v1 import policy_pb2 as pb
from runtime.frame_lane import FrameLane


async def until(condition: Callable[[], bool], what: str) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail(what)


async def lane_of(run: Any, session: str = "arm") -> FrameLane:
    lane = FrameLane(session)
    lane.open(run.stub, run.channel)
    await until(lambda: lane.is_open, f"never opened: {lane.state}")
    return lane


def frames(brightness: int, size: int = tiny.SIZE) -> list[Frame]:
    image = np.full((size, size, 3), brightness, np.uint8)
    return [Frame(camera.name, 1, 1, image) for camera in tiny.CAMERAS]


def request_for(placed: Any, tick: int = 1) -> pb.InferRequest:
    request = tiny.make_request(tick)
    del request.images[:]
    request.lane = placed.lane
    request.frames.extend(placed.frames)
    return request


async def light(run: Any, request: pb.InferRequest) -> float:
    """How bright the server says that the pictures were."""
    reply = await run.stub.Infer(request, timeout=5)
    return float(decode_tensor(reply.actions, "actions", np.float32, (None, 6))[0, 0] * 255 / 2)


async def refusal(run: Any, request: pb.InferRequest) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await run.stub.Infer(request, timeout=5)
    return caught.value.code(), caught.value.details() or ""
