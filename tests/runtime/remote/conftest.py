"""RobotControl over a real gRPC server, and a client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from protos.ratchet.v1 import robot_pb2_grpc as pb_grpc
from runtime.remote.client import RobotClient
from runtime.remote.config import RemoteConfig
from runtime.remote.server import RemoteServer
from tests.runtime.memory_facade import MemoryFacade


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
