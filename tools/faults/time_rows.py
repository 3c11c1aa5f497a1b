"""Rows about time: the wall clock jumps, the interpreter stands still for a collection.

They are done to a robot of their own: its processes run with libfaketime preloaded, and its service as
``tools.faults.collecting``.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from episodes.store import EpisodeStore
from tools.errors import UsageError
from tools.faults.collecting import collect
from tools.faults.row import Row
from tools.faults.scene import Scene, until

PROGRAM = "tools.faults.collecting"
STEP_S = 30
_CLOCK = "wall-clock"
_TOLERANCE_S = 5.0
_NOTICED_S = 1.5  # libfaketime looks at its file once a second


def preloaded(directory: Path) -> Mapping[str, str]:
    """What a process inherits whose wall clock follows ``directory``/wall-clock; without libfaketime {}."""
    library = next(iter(sorted(Path("/usr/lib").glob("**/faketime/libfaketimeMT.so.1"))), None)
    if library is None:
        return {}
    clock = directory / _CLOCK
    clock.write_text("+0\n")
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DONT_RESET": "1",
    }


def _needs_faketime() -> str:
    found = any(Path("/usr/lib").glob("**/faketime/libfaketimeMT.so.1"))
    return "" if found else "libfaketime is not installed (apt-get install libfaketime)"


def _step(seconds: int) -> Callable[[Scene], AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def fault(scene: Scene) -> AsyncIterator[None]:
        rig = scene.rig
        clock = rig.directory / _CLOCK
        clock.write_text(f"{seconds:+d}\n")
        try:
            await asyncio.sleep(_NOTICED_S)
            now = datetime.datetime.now(datetime.UTC)
            episode = (await scene.control.start_episode("at another time")).id
            yield
            await scene.control.end_episode("success", "recorded")
            await until(lambda: episode in rig.digests(), "the episode is published")
        finally:
            clock.write_text("+0\n")
        with EpisodeStore.open(rig.paths.store, create=False, mode="r") as store:
            meta = store.read(episode).meta
        jump_s = (datetime.datetime.fromisoformat(meta.started_wall) - now).total_seconds()
        if abs(jump_s - seconds) > _TOLERANCE_S:
            raise UsageError(f"the service's clock has jumped by {jump_s:.1f} s, not by {seconds} s")
        scene.notes.append(f"an episode recorded meanwhile says {jump_s:+.1f} s and is whole")

    return fault


@contextlib.asynccontextmanager
async def _collected(scene: Scene) -> AsyncIterator[None]:
    took_ms = [await asyncio.to_thread(collect, scene.rig.paths.config) for _ in range(3)]
    scene.notes.append(f"three collections held the interpreter for {max(took_ms):.0f} ms at most")
    yield


def _clock(sign: str, seconds: int) -> Row:
    return Row(
        name=f"clock-{sign}{STEP_S}",
        done=f"wall clock jumps by {seconds:+d} s, and back",
        how="libfaketime in every process of the robot; an episode is recorded meanwhile",
        fault=_step(seconds),
        state="moves on",
        within_s=0.0,
        recovers="nothing stops",
        needs=_needs_faketime,
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
        rig="own",
    ),
)
