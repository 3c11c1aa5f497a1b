"""A key, a trust store, a directory of tiny bundles, and servers over unix sockets."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
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
