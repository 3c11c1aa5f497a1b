"""Rows about time: the wall clock jumps, the interpreter stands still for a collection.

They are done to a robot of their own: its processes have a wall clock of their own
(``tools.faults.wall_clock``), and its service is ``tools.faults.collecting``.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

from episodes.store import EpisodeStore
from tools.errors import UsageError
from tools.faults import wall_clock
from tools.faults.collecting import collect
from tools.faults.row import Row
from tools.faults.scene import Scene, until

PROGRAM = "tools.faults.collecting"
STEP_S = 30
_TOLERANCE_S = 5.0


def _step(seconds: int) -> Callable[[Scene], AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def fault(scene: Scene) -> AsyncIterator[None]:
        rig = scene.rig
        wall_clock.step(rig.directory, seconds)
        try:
            now = datetime.datetime.now(datetime.UTC)
            episode = (await scene.control.start_episode("at another time")).id
            yield
            await scene.control.end_episode("success", "recorded")
            await until(lambda: episode in rig.digests(), "the episode is published")
        finally:
            wall_clock.step(rig.directory, 0)
        with EpisodeStore.open(rig.paths.store, create=False, mode="r") as store:
            meta = store.read(episode).meta
        jump_s = (datetime.datetime.fromisoformat(meta.started_wall) - now).total_seconds()
        if abs(jump_s - seconds) > _TOLERANCE_S:
            raise UsageError(f"the service's clock has jumped by {jump_s:.1f} s, not by {seconds} s")
        scene.notes.append(f"an episode recorded meanwhile says {jump_s:+.1f} s and is whole")

    return fault


@contextlib.asynccontextmanager
async def _collected(scene: Scene) -> AsyncIterator[None]:
    took_ms = await asyncio.to_thread(collect, scene.rig.paths.config)
    scene.notes.append(f"it held the interpreter for {took_ms:.0f} ms")
    yield


def _clock(sign: str, seconds: int) -> Row:
    return Row(
        name=f"clock-{sign}{STEP_S}",
        done=f"wall clock jumps by {seconds:+d} s, and back",
        how="a preloaded library steps it for every process of the robot; an episode is recorded meanwhile",
        fault=_step(seconds),
        state="moves on",
        within_s=0.0,
        recovers="nothing stops",
        needs=wall_clock.missing,
        rig="own",
    )


ROWS: tuple[Row, ...] = (
    _clock("forward-", STEP_S),
    _clock("back-", -STEP_S),
    Row(
        name="collection",
        done="a full garbage collection in the runtime",
        how="a thread beside the service collects everything, two million further objects included",
        fault=_collected,
        state="moves on",
        within_s=0.0,
        recovers="nothing stops",
        missed_share=0.3,  # as long as the collection holds the interpreter
        rig="own",
    ),
)
