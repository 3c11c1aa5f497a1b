"""RobotControl over a real gRPC server: a session, bounds, errors, telemetry, health, addresses."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from pydantic import ValidationError

from hal.clock import MonotonicClock
from hal.errors import PortError
from protos.access.errors import CredentialsError
from protos.ratchet.v1 import robot_pb2 as pb
from protos.ratchet.v1 import robot_pb2_grpc as pb_grpc
from runtime.health import HealthBoard
from runtime.remote.client import RobotCallError, RobotClient
from runtime.remote.config import RemoteConfig
from runtime.remote.errors import RemoteConfigError
from runtime.remote.server import SERVICE, RemoteServer
from tests.runtime.memory_facade import MemoryFacade


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
