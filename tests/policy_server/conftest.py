"""A key, a trust store, a directory of tiny bundles, and servers over unix sockets."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import tiny

from policies.bundle import Bundle
from policies.keys import KeyPair, write_public
from policy_server.config import ServerConfig
from policy_server.server import PolicyServer
from protos.ratchet.v1 import policy_pb2 as pb
from protos.ratchet.v1 import policy_pb2_grpc


@dataclass
class Place:
    """Where a test's bundles, keys and socket are."""

    root: Path
    key: KeyPair

    @property
    def trust(self) -> Path:
        return self.root / "trust"

    @property
    def address(self) -> str:
        return f"unix:{self.root}/s"

    def bundle(self, name: str, offset: float = 0.0, key: KeyPair | None = None, **over: Any) -> Bundle:
        """A new tiny bundle inside the allowed root."""
        return tiny.make_bundle(self.root / "bundles" / name, key or self.key, offset, **over)

    def config(self, **over: Any) -> ServerConfig:
        base = {
            "address": self.address,
            "trust": self.trust,
            "allowed_roots": (self.root / "bundles",),
            "isolation": "thread",  # engine processes take most of a second to start
        }
        return ServerConfig(**{**base, **over})


@dataclass
class Running:
    """A listening server and a client's stub for it."""

    server: PolicyServer
    channel: grpc.aio.Channel
    stub: Any

    async def load(self, bundle: Bundle, **over: Any) -> pb.LoadResponse:
        """Load a bundle and have it serve."""
        request = pb.LoadRequest(path=str(bundle.path), activate=True, **over)
        return await self.stub.Load(request, timeout=30)

    async def report(
        self, version: str, episode: str, failed: bool, *flags: str, drive: bool = True
    ) -> pb.ReportResponse:
        """Of a session that what serves has just answered; with ``drive`` off of one that it has not."""
        if drive:
            await self.stub.Infer(tiny.make_request(session="r"), timeout=5)
        request = pb.ReportRequest(session="r", version=version, episode=episode, failed=failed, flags=flags)
        return await self.stub.Report(request, timeout=5)

    async def status(self) -> pb.StatusResponse:
        return await self.stub.Status(pb.StatusRequest(), timeout=5)

    @staticmethod
    async def refusal(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
        """The error that a call ends with; it must end with one."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        return caught.value


@pytest.fixture
def place() -> Iterator[Place]:
    # Not tmp_path: a socket's path may have 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="ps") as folder:
        root = Path(folder)
        (root / "bundles").mkdir()
        key = KeyPair.generate()
        write_public(key.public, root / "trust")
        yield Place(root, key)


@pytest.fixture
def running() -> Callable[[ServerConfig], AbstractAsyncContextManager[Running]]:
    @asynccontextmanager
    async def run(config: ServerConfig) -> AsyncIterator[Running]:
        async with PolicyServer(config) as server, grpc.aio.insecure_channel(config.address) as channel:
            yield Running(server, channel, policy_pb2_grpc.PolicyServiceStub(channel))

    return run
