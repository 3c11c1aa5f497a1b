"""The robot service: starts what it needs, runs the loop and the doors, and shuts down in the safe order.

``serve`` reads top to bottom: processes, store and loop (``service_parts``), doors; then ready; then
stop: refuse new commands, lower the arm, finish the episode, end the processes.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from typing import Any

from runtime.bus_handle import BusHandle
from runtime.caretaker import Caretaker
from runtime.config import RobotConfig
from runtime.exclusive import require_free_socket
from runtime.fleet.agent import FleetAgent
from runtime.health import HealthServer
from runtime.loop_metrics import loop_metrics
from runtime.loop_stats import TickLog
from runtime.metrics import Metric
from runtime.notify import Notifier, Watchdog, watchdog_period_s
from runtime.policy_log import PolicyLog
from runtime.policy_metrics import policy_metrics
from runtime.realtime import IdleCollector, favoured_pool, make_realtime
from runtime.remote.errors import RemoteError
from runtime.remote.server import RemoteServer
from runtime.robot import Robot
from runtime.service_parts import FIRST_SAMPLE_S, Parts, start_parts, within
from runtime.store_budget import keep_budget, publish_left, watch_disk

log = logging.getLogger(__name__)

_FIRST_FRAME_S = 5.0
_THRESHOLDS_RETRY_S = 1.0


async def serve(
    config: RobotConfig, stop: asyncio.Event, *, software: str, ready: Callable[[str], None] = lambda _: None
) -> None:
    """Run the robot until ``stop`` is set.

    ``software`` is the version recorded as provenance; ``ready`` is called with the address of the
    remote door once everything runs. Raises RuntimeFault, HalError, StoreError or CredentialsError when
    something cannot be started, and what ends the service while it runs.
    """
    asyncio.get_running_loop().set_default_executor(favoured_pool(config.loop.nice))
    async with start_parts(config, software) as parts:
        server = RemoteServer(config.remote, parts.robot, board=parts.board)
        health = _health_server(config, parts)
        notifier = Notifier.from_environment()
        require_free_socket(config.remote.address)
        await server.start()
        try:
            if health is not None:
                await health.start()
            _keep_time(config, parts)
            await _until(stop, _tasks(config, parts, server, notifier, software, ready))
        finally:
            notifier.stopping()
            await _park(parts.robot)
            await server.stop()
            if health is not None:
                await health.stop()
            notifier.close()


def _keep_time(config: RobotConfig, parts: Parts) -> None:
    """This thread runs the ticks: ahead of the process's other threads, and without a collection in between.

    What the kernel refused, here or to a bus process, is said once.
    """
    reports = {"loop": make_realtime(config.loop), "follower": parts.follower.realtime_report()}
    if parts.leader is not None:
        reports["leader"] = parts.leader.realtime_report()
    log.info("control loop %s", reports["loop"].line())
    refused = [f"{name} {m.name} ({m.detail})" for name, r in reports.items() for m in r.refused]
    if refused:
        log.warning("real time refused: %s; `ratchet doctor` says what grants it", ", ".join(refused))
    parts.loop.collector = IdleCollector()
    parts.loop.log = TickLog(config.run_dir)
    parts.policy.log = PolicyLog(config.run_dir)


def _tasks(
    config: RobotConfig,
    parts: Parts,
    server: RemoteServer,
    notifier: Notifier,
    software: str,
    ready: Callable[[str], None],
) -> list[Coroutine[Any, Any, None]]:
    """Everything that runs beside each other on the event loop."""
    caretaker = Caretaker(
        parts.loop, parts.follower, parts.leader, parts.cameras, parts.board, parts.policy.describe
    )
    tasks = [
        parts.loop.run(),
        server.serve(),
        caretaker.run(),
        parts.policy.run(),
        _follow_versions(parts),
        parts.robot.outcomes.send(),
        parts.robot.outcomes.watch(parts.loop, parts.recorder),
        watch_disk(parts.store, parts.recorder),
        publish_left(parts.store),
        _announce(parts, server, notifier, ready),
    ]
    if config.store.budget_gb is not None:
        tasks.append(keep_budget(parts.store, round(config.store.budget_gb * 1e9)))
    if config.fleet is not None:
        agent = FleetAgent(
            config.fleet,
            config.robot.site,
            config.robot.id,
            parts.robot,
            software=software,
            lease_holder=lambda: server.service.lease.holder,
        )
        tasks.append(agent.run())
    period_s = watchdog_period_s(os.environ, os.getpid())
    if period_s is not None:
        watched = {"loop": lambda: parts.loop.ticks, "bus": lambda: _cycles(parts.follower)}
        tasks.append(Watchdog(notifier, watched).run(period_s))
    return tasks


async def _until(stop: asyncio.Event, coroutines: list[Coroutine[Any, Any, None]]) -> None:
    """Run until ``stop``; the first part to fail ends the rest and its error is raised."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    waiter = asyncio.create_task(stop.wait())
    running: set[asyncio.Task[Any]] = {*tasks, waiter}
    try:
        while not waiter.done():
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    finally:
        for task in (*tasks, waiter):
            task.cancel()
        await asyncio.gather(*tasks, waiter, return_exceptions=True)


async def _announce(
    parts: Parts, server: RemoteServer, notifier: Notifier, ready: Callable[[str], None]
) -> None:
    """Tell systemd and the caller once the loop sees the arm and the cameras had their chance."""
    await within(FIRST_SAMPLE_S, lambda: parts.loop.sample is not None)
    cameras = parts.cameras.handles.values() if parts.cameras else ()
    if not await within(_FIRST_FRAME_S, lambda: all(camera.latest() is not None for camera in cameras)):
        log.warning("not every camera delivers yet; see the health report")
    notifier.ready(f"running at {server.address}")
    ready(server.address)


async def _follow_versions(parts: Parts) -> None:
    """When other weights answer, fetch the monitor thresholds that belong to them."""
    changed = asyncio.Event()
    parts.loop.on_version = lambda _: changed.set()
    while True:
        await changed.wait()
        changed.clear()
        try:
            await parts.robot.calibrate_monitors()
        except RemoteError as error:
            log.warning("monitors keep the old thresholds: %s", error)
            await asyncio.sleep(_THRESHOLDS_RETRY_S)
            changed.set()


async def _park(robot: Robot) -> None:
    """Refuse to be energised again, and begin to let the arm down; the bus process's end waits for it."""
    try:
        await robot.retire("the service is stopping")
    except RemoteError as error:
        log.error("could not lower the arm: %s", error)


def _cycles(handle: BusHandle) -> int:
    sample = handle.latest()
    return -1 if sample is None else sample.cycles


def _metrics(parts: Parts) -> list[Metric]:
    return [*loop_metrics(parts.loop), *policy_metrics(parts.policy)]


def _health_server(config: RobotConfig, parts: Parts) -> HealthServer | None:
    if config.health is None:
        return None
    return HealthServer(config.health, parts.board, lambda: _metrics(parts), parts.robot)
