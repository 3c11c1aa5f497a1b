"""The robot service: starts what it needs, runs the loop and the doors, and shuts down in the safe order.

``serve`` reads top to bottom: processes, store, loop, doors; then ready; then stop: refuse new
commands, lower the arm, finish the episode, end the processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from episodes.spec import CameraSpec
from episodes.store import EpisodeStore
from hal.clock import MonotonicClock
from runtime.bus_handle import BusConfig, BusHandle
from runtime.bus_records import Fault
from runtime.camera_handle import CameraProcessConfig, CameraSet
from runtime.caretaker import Caretaker
from runtime.config import ArmConfig, RobotConfig, StoreConfig
from runtime.control import Controller
from runtime.errors import BusProcessError
from runtime.exclusive import exclusive, require_free_socket
from runtime.fleet.agent import FleetAgent
from runtime.health import HealthBoard, HealthServer, Metric
from runtime.loop import ControlLoop
from runtime.loop_metrics import loop_metrics
from runtime.loop_stats import TickLog
from runtime.monitors import MonitorBank
from runtime.notify import Notifier, Watchdog, watchdog_period_s
from runtime.policy_log import PolicyLog
from runtime.policy_metrics import policy_metrics
from runtime.policy_source import policy_source
from runtime.policy_switch import PolicySwitch, flag_evidence
from runtime.preroll import Preroll
from runtime.realtime import IdleCollector, favoured_pool, make_realtime
from runtime.recorder import EpisodeRecorder
from runtime.remote.errors import RemoteError
from runtime.remote.server import RemoteServer
from runtime.robot import Robot
from runtime.store_budget import keep_budget, publish_left, watch_disk

log = logging.getLogger(__name__)

_HEALTH_LIMITS_S = {"bus": 1.0, "loop": 1.0, "store": 2.0, "policy": 2.0}
_FIRST_SAMPLE_S = 5.0
_FIRST_FRAME_S = 5.0
_THRESHOLDS_RETRY_S = 1.0


@dataclass(slots=True)
class _Parts:
    """What a running robot is made of."""

    store: EpisodeStore
    recorder: EpisodeRecorder
    follower: BusHandle
    leader: BusHandle | None
    cameras: CameraSet | None
    policy: PolicySwitch
    loop: ControlLoop
    robot: Robot
    board: HealthBoard


async def serve(
    config: RobotConfig, stop: asyncio.Event, *, software: str, ready: Callable[[str], None] = lambda _: None
) -> None:
    """Run the robot until ``stop`` is set.

    ``software`` is the version recorded as provenance; ``ready`` is called with the address of the
    remote door once everything runs. Raises RuntimeFault, HalError or StoreError when something
    cannot be started, and what ends the service while it runs.
    """
    asyncio.get_running_loop().set_default_executor(favoured_pool(config.loop.nice))
    async with _parts(config, software) as parts:
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


@contextlib.asynccontextmanager
async def _parts(config: RobotConfig, software: str) -> AsyncIterator[_Parts]:
    """Start the processes and build the loop; end them in the opposite order."""
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(exclusive(config.run_dir))
        store = stack.enter_context(EpisodeStore.open(config.store.path, create=True))
        follower = await _start_bus(stack, config, "follower", config.follower)
        leader = None
        if config.leader is not None:
            leader = await _start_bus(stack, config, "leader", config.leader)
        cameras = None
        if config.cameras:
            cameras = CameraSet(CameraProcessConfig(cameras=config.cameras, run_dir=config.run_dir))
            stack.callback(cameras.stop)
            cameras.start()
        policy = policy_source(config.policy, config.robot.id, config.run_dir)
        stack.push_async_callback(policy.close)
        recorder = EpisodeRecorder(
            store,
            _camera_specs(config),
            config.control.rate_hz,
            _provenance(config, software),
            bus_streams=True,
            codec=config.store.codec,
            jpeg_quality=config.store.jpeg_quality,
            crf=config.store.crf,
            preroll=_preroll(config.store),
        )
        bank = MonitorBank(config.monitors, None, config.control.task_limit_ticks)
        loop = ControlLoop(
            Controller(config.control, bank),
            follower,
            leader,
            cameras.handles if cameras else {},
            policy,
            recorder,
            bus_silence_ns=config.bus.watchdog_ms * 1_000_000,
        )
        policy.on_change = lambda change: loop.remark(
            "policy_fallback" if change.local else "policy_return",
            change.t_ns,
            flag_evidence(change, loop.policy_version),
        )
        robot = Robot(config.robot.id, loop, follower, policy, recorder)
        limits = {**_HEALTH_LIMITS_S, **{f"camera.{name}": 2.0 for name in config.cameras}}
        if leader is not None:
            limits["leader"] = 1.0
        yield _Parts(
            store,
            recorder,
            follower,
            leader,
            cameras,
            policy,
            loop,
            robot,
            HealthBoard(limits, MonotonicClock()),
        )


async def _start_bus(
    stack: contextlib.AsyncExitStack, config: RobotConfig, name: str, arm: ArmConfig
) -> BusHandle:
    """Start one arm's process; an arm that cannot be reached now is the user's to mend.

    Later the same is a fault to recover from. Raises BusProcessError with the arm's own words.
    """
    handle = BusHandle(
        BusConfig(
            arm=name,
            role="follower" if name == "follower" else "leader",
            port=arm.port,
            baud=arm.baud,
            calibration=arm.calibration,
            run_dir=config.run_dir,
            leader="leader" if name == "follower" and config.leader is not None else None,
            replies=config.bus.replies,
            watchdog_ms=config.bus.watchdog_ms,
            guard=config.guard,
            servo=config.servo,
            realtime=config.realtime,
        )
    )
    stack.callback(handle.stop)
    handle.start()
    await _within(_FIRST_SAMPLE_S, lambda: handle.latest() is not None)
    sample = handle.latest()
    if sample is None:
        raise BusProcessError(f"the bus process of {name} gives no sample", "see its log")
    if sample.fault is not Fault.NONE:
        raise BusProcessError(f"the {name} arm cannot be used: {sample.message}")
    return handle


def _keep_time(config: RobotConfig, parts: _Parts) -> None:
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
    parts: _Parts,
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
    parts: _Parts, server: RemoteServer, notifier: Notifier, ready: Callable[[str], None]
) -> None:
    """Tell systemd and the caller once the loop sees the arm and the cameras had their chance."""
    await _within(_FIRST_SAMPLE_S, lambda: parts.loop.sample is not None)
    cameras = parts.cameras.handles.values() if parts.cameras else ()
    if not await _within(_FIRST_FRAME_S, lambda: all(camera.latest() is not None for camera in cameras)):
        log.warning("not every camera delivers yet; see the health report")
    notifier.ready(f"running at {server.address}")
    ready(server.address)


async def _within(timeout_s: float, condition: Callable[[], bool]) -> bool:
    """Wait until ``condition`` holds, at most ``timeout_s``; whether it does."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.01)
    return True


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
            await asyncio.sleep(_THRESHOLDS_RETRY_S)
            changed.set()


async def _park(robot: Robot) -> None:
    """Refuse to be energised again, and begin to let the arm down; the bus process's end waits for it."""
    try:
        await robot.retire("the service is stopping")
    except RemoteError as error:
        log.error("could not lower the arm: %s", error)


def _preroll(config: StoreConfig) -> Preroll | None:
    if not config.keep_last_s:
        return None
    return Preroll(config.keep_last_s, config.keep_last_mb << 20, config.jpeg_quality)


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


def _metrics(parts: _Parts) -> list[Metric]:
    return [*loop_metrics(parts.loop), *policy_metrics(parts.policy)]


def _health_server(config: RobotConfig, parts: _Parts) -> HealthServer | None:
    if config.health is None:
        return None
    return HealthServer(config.health, parts.board, lambda: _metrics(parts), parts.robot)
