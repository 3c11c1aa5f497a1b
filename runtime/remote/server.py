"""The gRPC server of the robot: RobotControl, health per subsystem, reflection.

Life cycle: ``start`` → ``serve`` (until cancelled) → ``stop``. It lives in the runtime's event loop
and has no thread pool, so nothing queues in front of an e-stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from hal.clock import Clock, MonotonicClock
from protos.access.door import open_doors
from protos.access.errors import DoorError
from protos.ratchet.v1 import robot_pb2, robot_pb2_grpc
from runtime.health import HealthBoard
from runtime.remote.config import RemoteConfig
from runtime.remote.errors import RemoteConfigError
from runtime.remote.facade import RobotFacade
from runtime.remote.gate import Gate
from runtime.remote.service import RobotControlService

_log = logging.getLogger(__name__)

SERVICE = robot_pb2.DESCRIPTOR.services_by_name["RobotControl"].full_name
_HEALTH_PERIOD_S = 0.5


class RemoteServer:
    """Serves one robot's facade.

    ``board``, when given, is mirrored into grpc.health.v1: one name per subsystem, and "" and the
    service's own name for all of them together.
    """

    def __init__(
        self,
        config: RemoteConfig,
        facade: RobotFacade,
        clock: Clock | None = None,
        board: HealthBoard | None = None,
    ) -> None:
        self._config = config
        self._board = board
        self._gate = Gate(config)
        self.service = RobotControlService(facade, config, clock or MonotonicClock(), self._gate)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._server: grpc.aio.Server | None = None
        self._watch: asyncio.Task[None] | None = None
        self.address = config.address

    async def start(self) -> None:
        """Listen. ``address`` then holds the bound port. Raises RemoteConfigError when it cannot."""
        limit = self._config.max_message_bytes
        server = grpc.aio.server(
            interceptors=(self._gate,),
            options=(
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", limit),
                ("grpc.max_concurrent_streams", 64),
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_time_ms", 10_000),
                ("grpc.keepalive_timeout_ms", 3_000),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ),
        )
        robot_pb2_grpc.add_RobotControlServicer_to_server(self.service, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if self._config.reflection:
            names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        self.address = self._bind(server)
        await self._publish_health()
        await server.start()
        self._server = server
        self._watch = asyncio.create_task(self._run(), name="remote-watch")
        _log.info("remote control listening address=%s tls=%s", self.address, self._config.tls is not None)

    def _bind(self, server: grpc.aio.Server) -> str:
        address = self._config.address
        try:
            port = open_doors(server, address, self._config)
        except DoorError as error:
            raise RemoteConfigError(error.what, error.remedy) from error
        if address.startswith("unix:"):
            return address
        return f"{address.rpartition(':')[0]}:{port}"

    async def serve(self) -> None:
        """Wait for ever; raises if the lease watch fails, which ends remote control."""
        assert self._watch is not None, "start() first"
        await asyncio.shield(self._watch)

    async def stop(self, grace_s: float = 1.0) -> None:
        """Not serving, then no new calls, then at most ``grace_s`` for the running ones. Callable twice."""
        server, self._server = self._server, None
        if server is None:
            return
        await self._health.enter_graceful_shutdown()
        await server.stop(grace_s)
        assert self._watch is not None
        self._watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._watch

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.service.run())
            if self._board is not None:
                group.create_task(self._mirror_health())

    async def _mirror_health(self) -> None:
        while True:
            await asyncio.sleep(_HEALTH_PERIOD_S)
            await self._publish_health()

    async def _publish_health(self) -> None:
        verdicts = {SERVICE: True, "": True}
        if self._board is not None:
            report = self._board.report()
            verdicts = {name: subsystem.ok for name, subsystem in report.subsystems.items()}
            verdicts |= {SERVICE: report.ok, "": report.ok}
        for name, ok in verdicts.items():
            status = (
                health_pb2.HealthCheckResponse.SERVING if ok else health_pb2.HealthCheckResponse.NOT_SERVING
            )
            await self._health.set(name, status)
