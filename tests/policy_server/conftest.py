"""A key, a trust store, a directory of tiny bundles, servers over unix sockets, and one behind TLS."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tiny

from policies.bundle import Bundle
from policies.keys import KeyPair, write_public
from policies.session import ChunkResult
from policy_server.config import ServerConfig
from policy_server.costs import BatchCosts
from policy_server.server import PolicyServer
from protos.access.roles import Role
from protos.access.tls import identity_in, open_channel
from protos.ratchet.v1 import policy_pb2 as pb
from protos.ratchet.v1 import policy_pb2_grpc
from tests.runtime.waiting import eventually
from tools.authority import Authority
from tools.ports import free_port


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


class HeldSession:
    """Answers only when told to; what it wraps gives the answer."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.entered, self.release = threading.Event(), threading.Event()
        self.release.set()
        self.fault: Exception | None = None
        self.answer: ChunkResult | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def infer(self, state: np.ndarray, images: Mapping[str, np.ndarray]) -> ChunkResult:
        self.entered.set()
        self.release.wait(20)
        if self.fault is not None:
            raise self.fault
        return self.answer or self._inner.infer(state, images)


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

    def hold(self) -> HeldSession:
        """Put a held session in the place of the serving one."""
        slot = self.server.servicer.slots.serving.slot
        held = HeldSession(slot.session)
        object.__setattr__(slot, "session", held)
        return held

    def batching(self, costs: BatchCosts) -> None:
        """Have the serving slot believe in these costs."""
        object.__setattr__(self.server.servicer.slots.serving.slot, "costs", costs)

    async def pending(self, n: int) -> None:
        """Wait until so many requests wait or are computed."""
        await eventually(lambda: self.server.servicer.worker.pending == n)

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


@dataclass
class Site:
    """An authority, and a server that obeys it."""

    authority: Authority
    folder: Path
    address: str = ""
    people: str = ""

    def certificate(self, role: Role, name: str = "anna") -> Path:
        folder = self.folder / f"{name}-{role.name}"
        self.authority.client(folder, name, role)
        return folder

    def token(self, role: Role, days: float = 1.0, name: str = "ben") -> Path:
        made = self.authority.token(name, role, days)
        folder = self.folder / f"token-{made.id}"
        folder.mkdir()
        (folder / "token").write_text(made.text + "\n")
        (folder / "ca.pem").write_bytes((self.authority.folder / "ca.pem").read_bytes())
        return folder

    async def call(self, identity: Path, method: str, request: Any, people: bool = False) -> grpc.StatusCode:
        async with open_channel(self.people if people else self.address, identity_in(identity)) as channel:
            call = getattr(policy_pb2_grpc.PolicyServiceStub(channel), method)(request, timeout=10)
            return await call.code()


@pytest.fixture
async def site(place: Place, tmp_path: Path) -> AsyncIterator[Site]:
    authority, made = Authority.ensure(tmp_path / "authority")
    assert made
    authority.server(tmp_path / "server", ["127.0.0.1"])
    site = Site(authority, tmp_path, people=f"127.0.0.1:{free_port()}")
    server = tmp_path / "server"
    config = place.config(
        bundle=place.bundle("a").path,
        address="127.0.0.1:0",
        tls={"certificate": server / "server.pem", "key": server / "server.key", "ca": server / "ca.pem"},
        people={"address": site.people, "tokens": server / "tokens.pub"},
        revoked=authority.folder / "revoked",
        calls_per_s=50,
        calls_burst=60,
        failures_per_s=0.01,
        failures_burst=10,
        failures_total_per_s=5.0,  # and so ten at once
    )
    async with PolicyServer(config) as running:
        site.address = f"127.0.0.1:{running.port}"
        yield site
