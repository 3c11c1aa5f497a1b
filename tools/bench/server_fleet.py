"""Several clients at once, a process each, that begin together."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.bench.server_client import Arm
from tools.errors import UsageError

_ROOT = Path(__file__).resolve().parents[2]
_START_S = 120.0
_END_S = 60.0


async def run_fleet(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """What each arm says of itself, in order. Raises UsageError when one did not live to say it."""
    processes = await asyncio.gather(*(_start(arm) for arm in arms))
    try:
        await asyncio.gather(*(_expect(process, b"ready\n", _START_S) for process in processes))
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
        return list(
            await asyncio.gather(
                *(_figures(process, arm.seconds) for process, arm in zip(processes, arms, strict=True))
            )
        )
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _start(arm: Arm) -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tools.bench.server_client", arm.argument()),
        cwd=_ROOT,
        stdin=PIPE,
        stdout=PIPE,
        limit=2**24,
    )


async def _expect(process: Process, line: bytes, within_s: float) -> None:
    assert process.stdout is not None
    said = await asyncio.wait_for(process.stdout.readline(), within_s)
    if said != line:
        raise UsageError(f"a client of the benchmark ended at its start (it said {said!r})")


async def _figures(process: Process, seconds: float) -> dict[str, Any]:
    assert process.stdout is not None
    said = await asyncio.wait_for(process.stdout.readline(), seconds + _END_S)
    if not said:
        raise UsageError("a client of the benchmark ended before its time; run it again")
    figures: dict[str, Any] = json.loads(said)
    return figures
