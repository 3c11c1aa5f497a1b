"""What a running robot is made of: processes, store, loop; started in order, ended in the opposite one."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from episodes.spec import CameraSpec
from episodes.store import EpisodeStore
from hal.clock import MonotonicClock
from runtime.bus_handle import BusConfig, BusHandle
from runtime.bus_records import Fault
from runtime.camera_handle import CameraProcessConfig, CameraSet
from runtime.config import ArmConfig, RobotConfig, StoreConfig
from runtime.control import Controller
from runtime.errors import BusProcessError
from runtime.exclusive import exclusive
from runtime.health import HealthBoard
from runtime.loop import ControlLoop
from runtime.monitors import MonitorBank
from runtime.policy_source import policy_source
from runtime.policy_switch import PolicySwitch, flag_evidence
from runtime.preroll import Preroll
from runtime.recorder import EpisodeRecorder
from runtime.robot import Robot

FIRST_SAMPLE_S = 5.0
_HEALTH_LIMITS_S = {"bus": 1.0, "loop": 1.0, "store": 2.0, "policy": 2.0}


@dataclass(frozen=True, slots=True)
class Parts:
    """A robot's parts, all of them running but for the loop, which ticks when it is told to."""

    store: EpisodeStore
    recorder: EpisodeRecorder
    follower: BusHandle
    leader: BusHandle | None
    cameras: CameraSet | None
    policy: PolicySwitch
    loop: ControlLoop
    robot: Robot
    board: HealthBoard


@contextlib.asynccontextmanager
async def start_parts(config: RobotConfig, software: str) -> AsyncIterator[Parts]:
    """Start the processes and build the loop; end them in the opposite order.

    ``software`` is the version recorded as provenance. Raises RuntimeFault, HalError, StoreError or
    CredentialsError when something cannot be started; what was started until then is ended.
    """
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
        recorder = _recorder(config, store, software)
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
        yield Parts(store, recorder, follower, leader, cameras, policy, loop, robot, _health_board(config))


async def within(timeout_s: float, condition: Callable[[], bool]) -> bool:
    """Wait until ``condition`` holds, at most ``timeout_s``; whether it does."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.01)
    return True


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
    await within(FIRST_SAMPLE_S, lambda: handle.latest() is not None)
    sample = handle.latest()
    if sample is None:
        raise BusProcessError(f"the bus process of {name} gives no sample", "see its log")
    if sample.fault is not Fault.NONE:
        raise BusProcessError(f"the {name} arm cannot be used: {sample.message}")
    return handle


def _recorder(config: RobotConfig, store: EpisodeStore, software: str) -> EpisodeRecorder:
    cameras = [
        CameraSpec(name=name, height=camera.height, width=camera.width)
        for name, camera in config.cameras.items()
    ]
    return EpisodeRecorder(
        store,
        cameras,
        config.control.rate_hz,
        _provenance(config, software),
        bus_streams=True,
        codec=config.store.codec,
        jpeg_quality=config.store.jpeg_quality,
        crf=config.store.crf,
        preroll=_preroll(config.store),
    )


def _preroll(config: StoreConfig) -> Preroll | None:
    if not config.keep_last_s:
        return None
    return Preroll(config.keep_last_s, config.keep_last_mb << 20, config.jpeg_quality)


def _provenance(config: RobotConfig, software: str) -> dict[str, Any]:
    calibration = config.follower.calibration
    return {
        "robot": config.robot.id,
        "site": config.robot.site,
        "software": software,
        "calibration": None if calibration is None else calibration.name,
        "control": config.control.model_dump(),
    }


def _health_board(config: RobotConfig) -> HealthBoard:
    """Which parts report, and for how long each may say nothing, s."""
    limits = {**_HEALTH_LIMITS_S, **{f"camera.{name}": 2.0 for name in config.cameras}}
    if config.leader is not None:
        limits["leader"] = 1.0
    return HealthBoard(limits, MonotonicClock())
