"""Looks after the service's processes: says who is well, starts again what died.

A bus process that comes back never energises anything; an arm that its motors' watchdog holds is
held on, and a person enables it again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial

from runtime.bus_handle import BusHandle
from runtime.bus_records import Fault
from runtime.camera_handle import CameraSet
from runtime.errors import RuntimeFault
from runtime.health import HealthBoard
from runtime.loop import ControlLoop

log = logging.getLogger(__name__)

_PERIOD_S = 0.25
_FIRST_PAUSE_S = 0.5
_LAST_PAUSE_S = 10.0


class Restart:
    """When a process that keeps dying may be started again: pauses that double, up to ten seconds."""

    def __init__(self) -> None:
        self._pause_s = _FIRST_PAUSE_S
        self._not_before = 0.0

    def due(self, now_s: float) -> bool:
        """Whether to try now; counts as a try."""
        if now_s < self._not_before:
            return False
        if now_s - self._not_before > 2 * _LAST_PAUSE_S:
            self._pause_s = _FIRST_PAUSE_S  # it ran well for a while
        self._not_before = now_s + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LAST_PAUSE_S)
        return True


class Caretaker:
    """``run`` it beside the loop."""

    def __init__(
        self,
        loop: ControlLoop,
        follower: BusHandle,
        leader: BusHandle | None,
        cameras: CameraSet | None,
        board: HealthBoard,
        policy: Callable[[], str],
    ) -> None:
        self._loop = loop
        self._policy = policy
        self._arms = {"bus": follower} | ({} if leader is None else {"leader": leader})
        self._cameras = cameras
        self._board = board

    async def run(self) -> None:
        """Look every quarter of a second until cancelled; a start that takes long holds up nothing else."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._tell())
            for handle in self._arms.values():
                name = f"bus process arm={handle.config.arm}"
                group.create_task(_keep(name, partial(_runs, handle), handle.start))
            if self._cameras is not None:
                group.create_task(_keep("camera process", self._cameras.alive, self._cameras.start))

    async def _tell(self) -> None:
        while True:
            self._report()
            await asyncio.sleep(_PERIOD_S)

    def _report(self) -> None:
        loop, board = self._loop, self._board
        for name, handle in self._arms.items():
            self._report_arm(name, handle)
        board.beat("loop", f"{loop.ticks} ticks, {loop.stats.missed} missed")
        if loop.recorder_error:
            board.fail("store", loop.recorder_error)
        else:
            board.beat("store")
        # That no policy server answers is no illness of the robot; a person who looks is told.
        board.beat("policy", self._policy())
        for name, camera in (self._cameras.handles if self._cameras else {}).items():
            status = camera.status()
            if status is not None and status.ok and camera.latest() is not None:
                board.beat(f"camera.{name}")
            else:
                board.fail(f"camera.{name}", (status.message if status else "") or "no picture")

    def _report_arm(self, name: str, handle: BusHandle) -> None:
        sample = handle.latest()
        if not handle.alive():
            self._board.fail(name, "its process is not running")
        elif sample is None or sample.fault is not Fault.NONE:
            self._board.fail(name, sample.message if sample is not None else "no sample yet")
        else:
            self._board.beat(name, f"{sample.cycles} cycles, {sample.lost} lost")


def _runs(handle: BusHandle) -> bool:
    return handle.pid is not None


async def _keep(name: str, alive: Callable[[], bool], start: Callable[[], object]) -> None:
    """Start a process again whenever it has died."""
    restart = Restart()
    while True:
        if not alive() and restart.due(time.monotonic()):
            log.error("%s died; starting it again", name)
            try:
                await asyncio.to_thread(start)
            except RuntimeFault as error:
                log.error("%s not restarted: %s", name, error)
        await asyncio.sleep(_PERIOD_S)
