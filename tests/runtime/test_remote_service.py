"""RobotControl over a real gRPC server: leases, teleoperation, stopping, bounds, errors, health."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from memory_facade import MemoryFacade
from pydantic import ValidationError
from waiting import eventually

from hal.clock import MonotonicClock
from hal.errors import PortError
from protos.access.errors import CredentialsError
from protos.ratchet.v1 import robot_pb2 as pb
from protos.ratchet.v1 import robot_pb2_grpc as pb_grpc
from runtime.health import HealthBoard
from runtime.nouns import Vector
from runtime.remote.client import RobotCallError, RobotClient
from runtime.remote.config import RemoteConfig
from runtime.remote.errors import LeaseLostError, RemoteConfigError
from runtime.remote.server import SERVICE, RemoteServer


@pytest.fixture
def facade() -> MemoryFacade:
    return MemoryFacade()


@pytest.fixture
def config(tmp_path: Path) -> RemoteConfig:
    return RemoteConfig(
        address=f"unix:{tmp_path}/c.sock", plaintext=True, lease_window_s=0.6, teleop_stale_s=0.15
    )


@pytest.fixture
async def server(config: RemoteConfig, facade: MemoryFacade) -> AsyncIterator[RemoteServer]:
    server = RemoteServer(config, facade)
    await server.start()
    yield server
    await server.stop(0.1)


@pytest.fixture
async def client(server: RemoteServer) -> AsyncIterator[RobotClient]:
    async with RobotClient(server.address) as client:
        yield client


@pytest.fixture
async def stub(server: RemoteServer) -> AsyncIterator[pb_grpc.RobotControlStub]:
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield pb_grpc.RobotControlStub(channel)


async def test_state_carries_joints_loop_and_flags(client: RobotClient) -> None:
    state = await client.state()
    assert (state.robot, state.mode, state.lease_holder) == ("koch", "off", "")
    assert len(state.position) == len(state.joints) == 6
    assert state.position[0] == -1.0
    assert state.loop.period_ms_p50 == 33.3
    assert state.recent_flags[0].evidence_json == '{"joint": "gripper"}'


async def test_the_whole_session_of_an_operator(client: RobotClient, facade: MemoryFacade) -> None:
    async with client.control("anna") as control:
        assert (await control.enable()).mode == "ready"
        assert await control.set_policy("/bundles/a") == "/bundles/a"
        assert (await control.start_episode("pick the cube")).id == facade.episode
        assert (await control.set_mode("policy")).mode == "policy"
        assert (await client.state()).lease_holder == "anna"
        ended = await control.end_episode("success", "seen")
        assert (ended.frames, list(ended.flags)) == (12, ["stall"])
    assert facade.mode == "hold", "nobody holds control any more"
    assert facade.reason == "control released"


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
    facade.gate = asyncio.Event()
    call = stub.StartEpisode(pb.StartEpisodeRequest(lease=lease.id, task="t"), timeout=10)
    await facade.called("hold")
    facade.gate.set()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
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
    facade.gate = asyncio.Event()
    call = stub.SetMode(pb.SetModeRequest(lease=lease.id, mode="policy"), timeout=10)
    await facade.called("hold")  # the lease ran out while the facade was still at it
    facade.gate.set()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
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


@pytest.mark.parametrize("timeout", [None, 61.0, 3600.0])
async def test_a_deadline_is_mandatory(
    stub: pb_grpc.RobotControlStub, facade: MemoryFacade, timeout: float | None
) -> None:
    for method, request in (("GetState", pb.GetStateRequest()), ("Enable", pb.LeaseRequest())):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await getattr(stub, method)(request, timeout=timeout)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "deadline" in str(caught.value.details())


async def test_an_estop_is_not_refused_for_a_missing_deadline(
    stub: pb_grpc.RobotControlStub, facade: MemoryFacade
) -> None:
    await stub.EStop(pb.EStopRequest())
    await stub.Stop(pb.StopRequest())
    assert facade.names() == ["estop", "stop"]


async def test_bad_arguments_are_one_line(client: RobotClient) -> None:
    async with client.control() as control:
        for call in (
            control.set_mode("estop"),
            control.set_policy(""),
            control.set_policy("a\nb"),
            control.set_policy("missing"),
            control.start_episode("x" * 201),
            control.end_episode("maybe"),
        ):
            with pytest.raises(RobotCallError) as caught:
                await call
            assert caught.value.status is grpc.StatusCode.INVALID_ARGUMENT
            assert "\n" not in str(caught.value)


async def test_large_messages_are_refused(stub: pb_grpc.RobotControlStub, facade: MemoryFacade) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Stop(pb.StopRequest(reason="x" * 100_000), timeout=5)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_hardware_errors_become_unavailable(
    stub: pb_grpc.RobotControlStub, facade: MemoryFacade, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken() -> None:
        raise PortError("port /dev/ttyUSB0\nvanished", "plug it in")

    monkeypatch.setattr(facade, "state", broken)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetState(pb.GetStateRequest(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert caught.value.details() == "port /dev/ttyUSB0 vanished; plug it in"


async def test_telemetry_streams_at_the_rate_asked_for(client: RobotClient) -> None:
    times = []
    async for sample in client.telemetry(rate_hz=30.0):
        times.append(sample.t_ns)
        assert len(sample.state.position) == 6
        if len(times) == 7:
            break
    assert np.diff(times).min() > 0
    assert times[-1] - times[0] >= 6 * 0.8 / 30 * 1e9


async def test_telemetry_is_bounded(
    client: RobotClient, stub: pb_grpc.RobotControlStub, config: RemoteConfig
) -> None:
    for rate in (-1.0, 31.0, float("nan"), float("inf")):
        with pytest.raises(RobotCallError) as caught:
            await anext(client.telemetry(rate))
        assert caught.value.status is grpc.StatusCode.INVALID_ARGUMENT
    streams = [stub.StreamTelemetry(pb.StreamTelemetryRequest()) for _ in range(config.telemetry_max_streams)]
    for stream in streams:
        await stream.read()
    with pytest.raises(RobotCallError, match="streams are open"):
        await anext(client.telemetry())
    streams[0].cancel()
    async with asyncio.timeout(10):
        while True:
            try:
                await anext(client.telemetry())
                break
            except RobotCallError:
                await asyncio.sleep(0.02)
    for stream in streams:
        stream.cancel()


async def test_health_mirrors_the_subsystems(config: RemoteConfig, facade: MemoryFacade) -> None:
    board = HealthBoard({"bus": 60.0, "cameras": 60.0}, MonotonicClock())
    board.beat("bus")
    server = RemoteServer(config, facade, board=board)
    await server.start()
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def status(name: str) -> int:
            return (await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)).status

        serving, not_serving = (
            health_pb2.HealthCheckResponse.SERVING,
            health_pb2.HealthCheckResponse.NOT_SERVING,
        )
        assert await status("bus") == serving
        assert [await status(name) for name in ("cameras", "", SERVICE)] == [not_serving] * 3
        board.beat("cameras")
        async with asyncio.timeout(10):
            while await status("") != serving:  # noqa: ASYNC110 (there is only polling)
                await asyncio.sleep(0.05)
    await server.stop(0.1)


async def test_reflection_lists_the_service(server: RemoteServer) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(timeout=5)
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        reply = await call.read()
        await call.done_writing()
        assert SERVICE in [service.name for service in reply.list_services_response.service]


async def test_the_socket_is_closed_to_others(server: RemoteServer) -> None:
    mode = os.stat(server.address.removeprefix("unix:")).st_mode
    assert stat.S_IMODE(mode) == 0o660


async def test_an_address_in_use_is_one_line(facade: MemoryFacade) -> None:
    first = RemoteServer(RemoteConfig(address="127.0.0.1:0", plaintext=True), facade)
    await first.start()
    second = RemoteServer(RemoteConfig(address=first.address, plaintext=True), facade)
    with pytest.raises(RemoteConfigError, match="cannot listen"):
        await second.start()
    await first.stop(0.1)


@pytest.mark.parametrize("address", ["0.0.0.0:50051", "192.168.1.5:50051", "robot.local:50051", "[::]:1"])
def test_plaintext_stays_on_this_machine(address: str) -> None:
    with pytest.raises(ValidationError, match="plaintext"):
        RemoteConfig(address=address, plaintext=True)
    with pytest.raises(CredentialsError, match="no certificate"):
        RobotClient(address)


def test_encryption_is_the_default() -> None:
    with pytest.raises(ValidationError, match="set either tls files"):
        RemoteConfig(address="127.0.0.1:1")


async def test_no_server_is_one_line(tmp_path: Path) -> None:
    async with RobotClient(f"unix:{tmp_path}/none.sock", timeout_s=1.0) as client:
        with pytest.raises(RobotCallError, match=r"no robot answers at .*ratchet up") as caught:
            await client.state()
        assert "\n" not in str(caught.value)
