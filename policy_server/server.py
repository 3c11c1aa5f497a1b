"""The process's outer part: listen, say ready, feed the watchdog, stop in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from policy_server.claim import claim_all
from policy_server.config import ServerConfig
from policy_server.errors import ConfigError
from policy_server.gate import Gate
from policy_server.notify import notify, watchdog_interval_s
from policy_server.service import PolicyServicer
from protos.access.door import open_doors
from protos.access.errors import CredentialsError, DoorError
from protos.ratchet.v1 import policy_pb2, policy_pb2_grpc

log = logging.getLogger(__name__)

SERVICE = policy_pb2.DESCRIPTOR.services_by_name["PolicyService"].full_name
_HEALTH_INTERVAL_S = 0.5


class PolicyServer:
    """A listening server; ``async with PolicyServer(config):`` or `start` … `stop`."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        try:
            self._gate = Gate(config)
        except CredentialsError as error:
            raise ConfigError(str(error)) from error
        self.servicer = PolicyServicer(config)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._tasks: list[asyncio.Task[None]] = []
        self._server: grpc.aio.Server | None = None
        self.port = 0  # on TCP, once listening

    async def start(self) -> None:
        """Load the first bundle, if there is one, and listen.

        Raises RefusedBundleError when that bundle is refused and ConfigError when the address is taken.
        """
        config = self._config
        await self.servicer.start()
        server = grpc.aio.server(interceptors=(self._gate,), options=_options(config))
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(self.servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if config.reflection:
            names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        self.port = _listen(server, config)
        await self._set_health()
        await server.start()
        claim_all(config.priority)
        self._server = server
        self._tasks = [asyncio.create_task(self._watch_health()), asyncio.create_task(self._feed_watchdog())]
        log.info("server.listening address=%s", config.address)

    async def stop(self) -> None:
        """Say not serving, let requests in hand end, stop the threads. Safe to call twice."""
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._tasks = []
        server, self._server = self._server, None
        if server is not None:
            await self._health.enter_graceful_shutdown()
            self.servicer.end_streams()
            await server.stop(self._config.stop_grace_s)
        self.servicer.worker.stop()
        await asyncio.to_thread(self.servicer.close)
        log.info("server.stopped")

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def _set_health(self) -> None:
        serving = self.servicer.slots.serving is not None
        status = (
            health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in ("", SERVICE):
            await self._health.set(name, status)

    async def _watch_health(self) -> None:
        while True:
            await self._set_health()
            self.servicer.tick(_HEALTH_INTERVAL_S)
            await asyncio.sleep(_HEALTH_INTERVAL_S)

    async def _feed_watchdog(self) -> None:
        """Tell systemd that the service lives, only if the inference thread just proved that it does."""
        interval = watchdog_interval_s()
        while interval is not None:
            await self.servicer.worker.ping()
            notify("WATCHDOG=1")
            await asyncio.sleep(interval)


async def serve(config: ServerConfig, parent_pid: int | None = None) -> None:
    """Serve until SIGTERM or SIGINT, or until the process ``parent_pid`` ends.

    Raises ServerError when the server cannot start.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    _give_way(config.nice)
    async with PolicyServer(config) as server:
        with until_gone(parent_pid, stop):
            serving = server.servicer.slots.serving
            what = f"serving {serving.slot.version}" if serving else "no bundle loaded"
            notify("READY=1", f"STATUS=listening on {config.address}, {what}")
            await stop.wait()
            notify("STOPPING=1")


def _give_way(nice: int) -> None:
    """Raise this thread's niceness; the inference threads, which are made later, inherit it."""
    if nice > os.getpriority(os.PRIO_PROCESS, 0):
        os.setpriority(os.PRIO_PROCESS, 0, nice)


@contextlib.contextmanager
def until_gone(parent_pid: int | None, stop: asyncio.Event) -> Iterator[None]:
    """Set ``stop`` when a process ends. A pidfd, because PR_SET_PDEATHSIG follows a thread, not a process."""
    if parent_pid is None:
        yield
        return
    try:
        descriptor = os.pidfd_open(parent_pid)
    except ProcessLookupError:
        stop.set()
        yield
        return
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, stop.set)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _listen(server: grpc.aio.Server, config: ServerConfig) -> int:
    try:
        return open_doors(server, config.address, config)
    except (CredentialsError, DoorError) as error:
        raise ConfigError(str(error)) from error


def _options(config: ServerConfig) -> list[tuple[str, int]]:
    limit = config.max_message_mib * 2**20
    return [
        ("grpc.max_receive_message_length", limit),
        ("grpc.max_send_message_length", 64 * 2**20),
        ("grpc.max_concurrent_streams", 64),
        ("grpc.so_reuseport", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ]
