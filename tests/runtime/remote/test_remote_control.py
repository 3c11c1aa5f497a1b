"""Who may move the arm: leases that are held, lost and given back; stopping needs none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from protos.ratchet.v1 import robot_pb2 as pb
from protos.ratchet.v1 import robot_pb2_grpc as pb_grpc
from runtime.remote.client import RobotCallError, RobotClient
from runtime.remote.errors import LeaseLostError
from runtime.remote.server import RemoteServer
from tests.runtime.memory_facade import MemoryFacade
from tests.runtime.waiting import eventually


async def outlive_the_lease(
    facade: MemoryFacade, method: Callable[..., Awaitable[Any]], request: Any
) -> None:
    """Have the lease run out while the robot is still at what ``method`` asks for; it is refused then."""
    facade.gate = asyncio.Event()
    call = method(request, timeout=10)
    await facade.called("hold")
    facade.gate.set()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_motion_without_the_lease_is_refused(
    stub: pb_grpc.RobotControlStub, facade: MemoryFacade
) -> None:
    calls = {
        "Enable": pb.LeaseRequest(lease="x"),
        "ClearEStop": pb.LeaseRequest(lease="x"),
        "SetMode": pb.SetModeRequest(lease="x", mode="policy"),
        "SetPolicy": pb.SetPolicyRequest(lease="x", bundle="b"),
        "StartEpisode": pb.StartEpisodeRequest(lease="x", task="t"),
        "EndEpisode": pb.EndEpisodeRequest(lease="x", outcome="success"),
        "KeepLast": pb.KeepLastRequest(lease="x", task="t", outcome="success"),
        "Heartbeat": pb.HeartbeatRequest(lease="x"),
        "ReleaseControl": pb.ReleaseControlRequest(lease="x"),
    }
    for method, request in calls.items():
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await getattr(stub, method)(request, timeout=5)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION, method
    assert facade.calls == []


async def test_second_holder_is_told_who_has_control(client: RobotClient) -> None:
    async with client.control("anna"):
        with pytest.raises(RobotCallError, match="held by anna") as caught:
            async with client.control("ben"):
                pass
        assert caught.value.status is grpc.StatusCode.ABORTED


async def test_heartbeats_keep_the_lease_beyond_its_window(client: RobotClient, facade: MemoryFacade) -> None:
    async with client.control("anna") as control:
        await control.enable()
        await control.set_mode("policy")
        await asyncio.sleep(1.5)
        assert facade.mode == "policy"
        assert control.lost is None


async def test_lost_lease_holds_the_arm_in_time(stub: pb_grpc.RobotControlStub, facade: MemoryFacade) -> None:
    lease = await stub.AcquireControl(pb.AcquireControlRequest(holder="anna"), timeout=5)
    acquired_s = time.monotonic()
    await stub.Enable(pb.LeaseRequest(lease=lease.id), timeout=5)
    await stub.SetMode(pb.SetModeRequest(lease=lease.id, mode="policy"), timeout=5)
    held_s = await facade.called("hold")
    assert facade.mode == "hold"
    assert held_s - acquired_s < 2.0
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.SetMode(pb.SetModeRequest(lease=lease.id, mode="policy"), timeout=5)
    assert "acquire control first" in str(caught.value.details())


async def test_an_episode_does_not_outlive_the_lease_it_was_begun_under(
    stub: pb_grpc.RobotControlStub, facade: MemoryFacade
) -> None:
    for released in (False, True):
        facade.calls.clear()
        lease = await stub.AcquireControl(pb.AcquireControlRequest(holder="anna"), timeout=5)
        await stub.StartEpisode(pb.StartEpisodeRequest(lease=lease.id, task="t"), timeout=5)
        if released:
            await stub.ReleaseControl(pb.ReleaseControlRequest(lease=lease.id), timeout=5)
        await facade.called("end_episode")
        assert facade.episode == ""
        assert ("end_episode", "unknown") in [call[:2] for call in facade.calls]
        await eventually(lambda: "hold" in facade.names())
        # Ended before the lease is free: whoever comes next finds the recorder idle.
        await asyncio.sleep(0.1)


async def test_an_episode_that_somebody_else_began_is_not_the_leases_to_end(
    stub: pb_grpc.RobotControlStub, facade: MemoryFacade
) -> None:
    lease = await stub.AcquireControl(pb.AcquireControlRequest(holder="anna"), timeout=5)
    await stub.StartEpisode(pb.StartEpisodeRequest(lease=lease.id, task="t"), timeout=5)
    await stub.EndEpisode(pb.EndEpisodeRequest(lease=lease.id, outcome="success"), timeout=5)
    await facade.start_episode("by the fleet")
    await stub.ReleaseControl(pb.ReleaseControlRequest(lease=lease.id), timeout=5)
    assert facade.names()[-1] == "hold"
    assert facade.episode, "it runs on"


async def test_an_episode_that_began_while_the_lease_ran_out_is_ended(
    stub: pb_grpc.RobotControlStub, facade: MemoryFacade
) -> None:
    lease = await stub.AcquireControl(pb.AcquireControlRequest(holder="anna"), timeout=5)
    await outlive_the_lease(facade, stub.StartEpisode, pb.StartEpisodeRequest(lease=lease.id, task="t"))
    assert facade.episode == ""


async def test_a_client_learns_that_its_lease_is_gone(
    client: RobotClient, server: RemoteServer, facade: MemoryFacade
) -> None:
    async with client.control("anna") as control:
        server.service.lease.release(control.lease.id, "local")
        await eventually(lambda: control.lost)
        with pytest.raises(LeaseLostError):
            await control.enable()
    assert "enable" not in facade.names()


async def test_a_mode_set_while_the_lease_ran_out_ends_in_hold(
    stub: pb_grpc.RobotControlStub, facade: MemoryFacade
) -> None:
    lease = await stub.AcquireControl(pb.AcquireControlRequest(holder="anna"), timeout=5)
    await stub.Enable(pb.LeaseRequest(lease=lease.id), timeout=5)
    await outlive_the_lease(facade, stub.SetMode, pb.SetModeRequest(lease=lease.id, mode="policy"))
    assert facade.mode == "hold"


async def test_stops_need_no_lease_and_overtake_what_is_stuck(
    client: RobotClient, stub: pb_grpc.RobotControlStub, facade: MemoryFacade
) -> None:
    lease = await stub.AcquireControl(pb.AcquireControlRequest(holder="anna"), timeout=5)
    facade.gate = asyncio.Event()
    stuck = [stub.SetPolicy(pb.SetPolicyRequest(lease=lease.id, bundle="b"), timeout=10) for _ in range(20)]
    await facade.called("set_policy")
    assert (await client.stop()).mode == "off"
    assert (await client.estop("smoke\x00\nfire")).mode == "estop"
    assert facade.calls[-1][:2] == ("estop", "smoke fire")
    assert not any(call.done() for call in stuck)
    facade.gate.set()
    await asyncio.gather(*stuck, return_exceptions=True)


async def test_estop_is_cleared_only_with_the_lease(client: RobotClient, facade: MemoryFacade) -> None:
    await client.estop()
    async with client.control("anna") as control:
        with pytest.raises(RobotCallError, match="cannot enable in mode estop"):
            await control.enable()
        assert (await control.clear_estop()).mode == "off"
