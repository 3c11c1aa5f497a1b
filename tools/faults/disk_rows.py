"""Rows about the disk that episodes are recorded on."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import shutil
import subprocess
import time
from collections.abc import AsyncIterator

from tools.errors import UsageError
from tools.faults.processes import threads
from tools.faults.row import Row
from tools.faults.scene import Scene, until

SLOW_MS = 200
_FITS = 65_536
_CALLS = "write,pwrite64,writev,fsync,fdatasync,ftruncate,rename"


@contextlib.asynccontextmanager
async def _full(scene: Scene) -> AsyncIterator[None]:
    rig = scene.rig
    unlimited = resource.prlimit(rig.pid, resource.RLIMIT_FSIZE)
    await scene.control.start_episode("more than fits")
    resource.prlimit(rig.pid, resource.RLIMIT_FSIZE, (rig.log.stat().st_size + _FITS, unlimited[1]))
    try:
        yield
        if (await scene.robot.state()).episode:
            raise UsageError("the recording goes on although the disk is full")
        await until(lambda: not rig.health()["store"]["ok"], "the health page says so")
    finally:
        resource.prlimit(rig.pid, resource.RLIMIT_FSIZE, unlimited)


@contextlib.asynccontextmanager
async def _slow(scene: Scene) -> AsyncIterator[None]:
    rig = scene.rig
    before = threads(rig.pid)
    episode = (await scene.control.start_episode("on a slow disk")).id
    writers = threads(rig.pid) - before
    command = ["strace", "-qq", "-o", str(rig.directory / "strace.log"), "-e", f"trace={_CALLS}"]
    command += ["-e", f"inject={_CALLS}:delay_enter={SLOW_MS * 1000}"]
    command += [part for thread in writers for part in ("-p", str(thread))]
    tracer = await asyncio.to_thread(subprocess.Popen, command)
    try:
        yield
        if tracer.poll() is not None:
            raise UsageError(f"strace could not delay the writer of {rig.log}; it needs CAP_SYS_PTRACE")
        begun = time.monotonic()
        await scene.control.end_episode("success", "slow")
        ended_ms = (time.monotonic() - begun) * 1e3
    finally:
        tracer.terminate()
        tracer.wait()
    delayed = (rig.directory / "strace.log").read_text(errors="replace").count("(DELAYED)")
    await until(lambda: episode in rig.digests(), "the episode is published")
    scene.notes.append(f"{delayed} calls delayed; ending the episode took {ended_ms:.0f} ms; it is whole")


def _needs_strace() -> str:
    return "" if shutil.which("strace") else "strace is not installed (apt-get install strace)"


ROWS: tuple[Row, ...] = (
    Row(
        name="disk-full",
        done="disk full while recording",
        how="a limit on the size of the service's files: its writes fail as on a full disk",
        fault=_full,
        drive="policy",
        state="moves on",
        within_s=0.0,
        recovers="nothing stops",
        watch_s=3.0,
        note="the recording ends and the state says why; what was on disk is recovered at the next start",
    ),
    Row(
        name="disk-slow",
        done=f"disk slow ({SLOW_MS} ms each write) while recording",
        how=f"strace delays every write, sync and rename of the recorder's disk thread by {SLOW_MS} ms",
        fault=_slow,
        state="moves on",
        within_s=0.0,
        recovers="nothing stops",
        watch_s=3.0,
        needs=_needs_strace,
    ),
)
