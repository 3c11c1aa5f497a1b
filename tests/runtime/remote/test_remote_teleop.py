"""Goals that are streamed: fresh ones reach the arm, old, silent and malformed ones do not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import numpy as np
import pytest

from protos.ratchet.v1 import robot_pb2 as pb
from protos.ratchet.v1 import robot_pb2_grpc as pb_grpc
from runtime.nouns import Vector
from runtime.remote.client import RobotClient
from tests.runtime.memory_facade import MemoryFacade


async def goals(count: int, period_s: float, age_ns: int = 0) -> AsyncIterator[tuple[Vector, int]]:
    for i in range(count):
        yield np.full(6, i / 100), time.monotonic_ns() - age_ns
        await asyncio.sleep(period_s)


async def test_teleop_goals_reach_the_arm(client: RobotClient, facade: MemoryFacade) -> None:
    async with client.control("anna") as control:
        await control.enable()
        await control.set_mode("teleop")
        summary = await control.teleop(goals(10, 0.01))
        assert (summary.received, summary.refused) == (10, 0)
        assert [call[1][0] for call in facade.calls if call[0] == "teleop_goal"] == [
            i / 100 for i in range(10)
        ]
        assert facade.mode == "hold", "the stream is over, nobody moves the arm"


async def test_silent_teleop_holds_within_its_limit_and_needs_arming_again(
    client: RobotClient, facade: MemoryFacade
) -> None:
    async with client.control("anna") as control:
        await control.enable()
        await control.set_mode("teleop")

        async def with_a_gap() -> AsyncIterator[tuple[Vector, int]]:
            yield np.zeros(6), time.monotonic_ns()
            await facade.called("hold")
            facade.mode = "teleop"  # even a facade that would take it again gets nothing
            yield np.ones(6), time.monotonic_ns()

        summary = await control.teleop(with_a_gap())
        assert (summary.received, summary.refused) == (2, 1)
        taken = [at for name, _, at in facade.calls if name == "teleop_goal"]
        held = [at for name, _, at in facade.calls if name == "hold"]
        assert len(taken) == 1
        assert 0.1 < held[0] - taken[0] < 1.0


async def test_old_goals_are_refused(client: RobotClient, facade: MemoryFacade) -> None:
    async with client.control("anna") as control:
        await control.enable()
        await control.set_mode("teleop")
        summary = await control.teleop(goals(3, 0.0, age_ns=300_000_000))
        assert (summary.received, summary.refused) == (3, 3)
        assert "teleop_goal" not in facade.names()


@pytest.mark.parametrize("position", [[0.0] * 5, [0.0] * 7, [float("nan")] * 6, [float("inf")] * 6])
async def test_malformed_goals_end_the_stream(
    stub: pb_grpc.RobotControlStub, facade: MemoryFacade, position: list[float]
) -> None:
    lease = await stub.AcquireControl(pb.AcquireControlRequest(holder="a"), timeout=5)
    facade.mode = "ready"
    await stub.SetMode(pb.SetModeRequest(lease=lease.id, mode="teleop"), timeout=5)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Teleop(iter([pb.TeleopGoal(lease=lease.id, position=position)]), timeout=5)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "teleop_goal" not in facade.names()
