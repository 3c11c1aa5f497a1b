"""The live panel of `ratchet record`: rate, drops, disk, time left, last flags. It only looks."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

from rich.console import Console
from rich.live import Live
from rich.table import Table

from protos.ratchet.v1 import robot_pb2 as pb
from runtime.remote.client import RobotClient
from runtime.remote.errors import RemoteError

_PERIOD_S = 0.25
_LOW_DISK_S = 600.0


@contextlib.asynccontextmanager
async def panel(robot: RobotClient) -> AsyncIterator[None]:
    """Show the panel at the foot of the terminal while the block runs; nothing where stderr is none."""
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        task = asyncio.create_task(_follow(robot, live))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _follow(robot: RobotClient, live: Live) -> None:
    while True:
        try:
            live.update(picture(await robot.state()))
        except RemoteError as error:
            live.update(f"no state: {error}")
        await asyncio.sleep(_PERIOD_S)


def picture(state: pb.RobotState) -> Table:
    """The panel for one state."""
    table = Table.grid(padding=(0, 2))
    for name, value in fields(state).items():
        table.add_row(name, value)
    return table


def fields(state: pb.RobotState) -> dict[str, str]:
    """What the panel says, by name."""
    recording, loop = state.recording, state.loop
    rate = 1000 / loop.period_ms_p50 if loop.period_ms_p50 else 0.0
    flags = ", ".join(f"{flag.kind} ({flag.score:.1f})" for flag in state.recent_flags[-4:])
    if state.episode:
        now = f"{recording.seconds:.1f} s, {recording.frames} pictures"
    elif recording.held_s:
        now = f"not recording; ← the last one again, k keeps the last {recording.held_s:g} s"
    else:
        now = "not recording; ← the last one again"
    return {
        "episode": now,
        "rate": f"{rate:.1f} Hz, {loop.missed} ticks missed",
        "drops": f"{recording.dropped} dropped, {recording.repeated} pictures repeated, "
        f"{loop.bus_lost} replies lost",
        "disk": disk(recording),
        "flags": flags or "none",
    }


def disk(recording: pb.Recording) -> str:
    """What is free, how fast it goes, and how long it lasts."""
    if not recording.HasField("disk_free"):
        return "unknown"
    free = f"{recording.disk_free / 1e9:.1f} GB free"
    if not recording.bytes_per_s:
        return free
    left_s = recording.disk_free / recording.bytes_per_s
    left = f"{left_s / 3600:.1f} h" if left_s > 7200 else f"{left_s / 60:.0f} min"
    warning = "  RUNNING OUT" if left_s < _LOW_DISK_S else ""
    return f"{free}, {recording.bytes_per_s / 1e6:.1f} MB/s, {left} left{warning}"
