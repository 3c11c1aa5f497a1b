"""The robot service: starts what it needs, runs the loop and the doors, and shuts down in the safe order.

``serve`` reads top to bottom: processes, store, loop, doors; then ready; then stop: refuse new
commands, lower the arm, finish the episode, end the processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from episodes.spec import CameraSpec
from episodes.store import EpisodeStore
from hal.clock import MonotonicClock
from runtime.bus_handle import BusConfig, BusHandle
from runtime.camera_handle import CameraProcessConfig, CameraSet
from runtime.config import ArmConfig, RobotConfig
from runtime.control import Controller
from runtime.errors import BusProcessError
from runtime.fleet.agent import FleetAgent
from runtime.health import HealthBoard, HealthServer, Metric
from runtime.loop import ControlLoop
from runtime.monitors import MonitorBank
from runtime.notify import Notifier, Watchdog, watchdog_period_s
from runtime.policy_client import PolicyClient
from runtime.recorder import EpisodeRecorder
from runtime.remote.errors import RemoteError
from runtime.remote.server import RemoteServer
from runtime.robot import Robot

log = logging.getLogger(__name__)

_BEAT_S = 0.25
_HEALTH_LIMITS_S = {"bus": 1.0, "loop": 1.0, "store": 2.0}
_LOWERING_S = 20.0


@dataclass(slots=True)
class _Parts:
    """What a running robot is made of."""

    follower: BusHandle
    leader: BusHandle | None
    cameras: CameraSet | None
    store: EpisodeStore
    recorder: EpisodeRecorder
    policy: PolicyClient
    loop: ControlLoop
    robot: Robot
    board: HealthBoard


async def serve(
    config: RobotConfig, stop: asyncio.Event, *, software: str, ready: Callable[[str], None] = lambda _: None
) -> None:
    """Run the robot until ``stop`` is set.

    ``software`` is the version recorded as provenance; ``ready`` is called with the address of the
    remote door once everything runs. Raises RuntimeFault, HalError, StoreError or RemoteError when
    something cannot be started.
    """
    async with _parts(config, software) as parts:
        server = RemoteServer(config.remote, parts.robot, board=parts.board)
        await server.start()
        health = _health_server(config, parts)
        if health is not None:
            await health.start()
        notifier = Notifier.from_environment()
        try:
            await _until(stop, _tasks(config, parts, server, notifier, software, ready))
        finally:
            notifier.stopping()
            await _park(parts.robot)
            await server.stop()
            if health is not None:
                await health.stop()


@contextlib.asynccontextmanager
async def _parts(config: RobotConfig, software: str) -> AsyncIterator[_Parts]:
    """Start the processes and build the loop; end them in the opposite order."""
    config.run_dir.mkdir(parents=True, exist_ok=True)
    async with contextlib.AsyncExitStack() as stack:
        store = stack.enter_context(EpisodeStore.open(config.store.path, create=True))
        follower = _bus(config, "follower", config.follower)
        stack.callback(follower.stop)
        follower.start()
        _require_arm(follower)
        leader = None
        if config.leader is not None:
            leader = _bus(config, "leader", config.leader)
            stack.callback(leader.stop)
            leader.start()
            _require_arm(leader)
        cameras = None
        if config.cameras:
            cameras = CameraSet(CameraProcessConfig(cameras=config.cameras, run_dir=config.run_dir))
            stack.callback(cameras.stop)
            cameras.start()
        policy = PolicyClient(config.policy.address, config.policy.timeout_s, session=config.robot.id)
        stack.push_async_callback(policy.close)
        recorder = EpisodeRecorder(
            store,
            _camera_specs(config),
            config.control.rate_hz,
            _provenance(config, software),
            bus_streams=True,
        )
        bank = MonitorBank(config.monitors, None, config.control.task_limit_ticks)
        loop = ControlLoop(
            Controller(config.control, bank),
            follower,
            leader,
            cameras.handles if cameras else {},
            policy,
            recorder,
        )
        robot = Robot(config.robot.id, loop, follower, policy, recorder)
        board = HealthBoard(
            {**_HEALTH_LIMITS_S, **{f"camera.{name}": 2.0 for name in config.cameras}}, MonotonicClock()
        )
        yield _Parts(follower, leader, cameras, store, recorder, policy, loop, robot, board)


def _tasks(
    config: RobotConfig,
    parts: _Parts,
    server: RemoteServer,
    notifier: Notifier,
    software: str,
    ready: Callable[[str], None],
) -> list[Coroutine[Any, Any, None]]:
    """Everything that runs beside each other on the event loop."""
    tasks = [
        parts.loop.run(),
        server.serve(),
        _beat(parts),
        _follow_versions(parts),
        _announce(parts, server, notifier, ready),
    ]
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
    running = {*tasks, waiter}
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
    parts: _Parts, server: RemoteServer, notifier: Notifier, ready: Callable[[str], None]
) -> None:
    """Tell systemd and the caller once the loop has seen the arm."""
    while parts.loop.sample is None:
        await asyncio.sleep(0.01)
    notifier.ready(f"running at {server.address}")
    ready(server.address)


async def _follow_versions(parts: _Parts) -> None:
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
            await asyncio.sleep(1.0)
            changed.set()


async def _beat(parts: _Parts) -> None:
    """Say which subsystems are well, and restart a bus process that died (the arm stays off)."""
    while True:
        _beat_once(parts)
        for handle in (parts.follower, parts.leader):
            if handle is not None and handle.pid is None:
                log.error("bus process of %s died; starting it again", handle.config.arm)
                try:
                    await asyncio.to_thread(handle.start)
                except BusProcessError as error:
                    log.error("bus process not restarted: %s", error)
        if parts.cameras is not None and not parts.cameras.alive():
            log.error("camera process died; starting it again")
            parts.cameras.start()
        await asyncio.sleep(_BEAT_S)


def _beat_once(parts: _Parts) -> None:
    board, sample = parts.board, parts.loop.sample
    if sample is not None and sample.fault.value == 0 and parts.follower.alive():
        board.beat("bus", f"{sample.cycles} cycles, {sample.lost} lost")
    else:
        board.fail("bus", sample.message if sample is not None else "no sample yet")
    board.beat("loop", f"{parts.loop.ticks} ticks, {parts.loop.stats.missed} missed")
    if parts.loop.recorder_error:
        board.fail("store", parts.loop.recorder_error)
    else:
        board.beat("store")
    for name, camera in (parts.cameras.handles if parts.cameras else {}).items():
        status = camera.status()
        if status is not None and status.ok and camera.latest() is not None:
            board.beat(f"camera.{name}")
        else:
            board.fail(f"camera.{name}", status.message if status is not None else "no picture yet")


async def _park(robot: Robot) -> None:
    """Let the arm down before anything else ends."""
    try:
        await robot.stop("the service is stopping")
    except RemoteError as error:
        log.error("could not lower the arm: %s", error)


def _bus(config: RobotConfig, name: str, arm: ArmConfig) -> BusHandle:
    return BusHandle(
        BusConfig(
            arm=name,
            role="follower" if name == "follower" else "leader",
            port=arm.port,
            baud=arm.baud,
            calibration=arm.calibration,
            run_dir=config.run_dir,
            guard=config.guard,
            servo=config.servo,
            realtime=config.realtime,
        )
    )


def _require_arm(handle: BusHandle) -> None:
    """An arm that cannot be reached at start is the user's to mend; later it is a fault to recover from."""
    sample = handle.latest()
    if sample is not None and sample.fault.value != 0:
        raise BusProcessError(sample.message or f"the {handle.config.arm} arm cannot be reached")


def _camera_specs(config: RobotConfig) -> list[CameraSpec]:
    return [
        CameraSpec(name=name, height=camera.height, width=camera.width)
        for name, camera in config.cameras.items()
    ]


def _provenance(config: RobotConfig, software: str) -> dict[str, Any]:
    calibration = config.follower.calibration
    return {
        "robot": config.robot.id,
        "site": config.robot.site,
        "software": software,
        "calibration": None if calibration is None else calibration.name,
        "control": config.control.model_dump(),
    }


def _cycles(handle: BusHandle) -> int:
    sample = handle.latest()
    return -1 if sample is None else sample.cycles


def _health_server(config: RobotConfig, parts: _Parts) -> HealthServer | None:
    if config.health is None:
        return None

    def metrics() -> list[Metric]:
        sample = parts.loop.sample
        figures = parts.loop.stats.figures(sample.cycles if sample else 0, sample.lost if sample else 0)
        return [
            Metric("loop_ticks_total", "counter", "Control ticks run.", figures.ticks),
            Metric("loop_missed_total", "counter", "Control ticks skipped.", figures.missed),
            Metric(
                "loop_period_p99_seconds", "gauge", "p99 of the tick period.", figures.period_ms_p99 / 1e3
            ),
            Metric(
                "inference_p99_seconds",
                "gauge",
                "p99 from observation to chunk.",
                figures.inference_ms_p99 / 1e3,
            ),
            Metric("bus_cycles_total", "counter", "Bus cycles run.", figures.bus_cycles),
            Metric("bus_lost_total", "counter", "Replies lost.", figures.bus_lost),
        ]

    return HealthServer(config.health, parts.board, metrics)
