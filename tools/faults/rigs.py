"""The rigs that rows are done to, one at a time: started when a row needs one, replaced when it is spent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Self

from runtime.remote.errors import RemoteError
from tools.errors import UsageError
from tools.faults import power_cut
from tools.faults.rig import Rig, Served
from tools.faults.row import Measured, Row
from tools.faults.run import run_row, without
from tools.faults.scene import driving, record
from tools.faults.time_rows import PROGRAM
from tools.faults.wall_clock import preloaded


class Rigs:
    """Runs rows below ``directory``. ``served`` is asked for the policy once, when a rig first needs it."""

    def __init__(self, directory: Path, served: Callable[[], Served]) -> None:
        self.directory = directory
        self._served = served
        self._policy: Served | None = None
        self._rig: Rig | None = None
        self._kind = ""
        self._count = 0
        self.statuses: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the present rig; ``statuses`` has the exit status of each `ratchet up` that was ended so."""
        rig, self._rig = self._rig, None
        if rig is not None:
            ours, status = rig.alive, rig.stop()
            self.statuses += [status] if ours else []

    def rig(self, row: Row) -> Rig:
        """One that ``row`` can be done to, with an episode published; a new one where the last has died."""
        kind = "own" if row.rig == "own" else "shared"
        if self._rig is not None and self._kind == kind and self._rig.alive:
            return self._rig
        self.stop()
        self._count += 1
        directory = self.directory / f"{kind}{self._count}"
        directory.mkdir()
        if kind == "own":
            self._rig = Rig(directory, None, program=PROGRAM, env=preloaded(directory))
        else:
            self._policy = self._policy or self._served()
            self._rig = Rig(directory, self._policy)
        self._kind = kind
        try:
            asyncio.run(_first_episode(self._rig))
        except (UsageError, RemoteError):
            self.stop()  # else the next row would get one without an episode
            raise
        return self._rig

    def run(self, row: Row) -> Measured:
        """Do one row. A row that cannot be done here is skipped; one that goes wrong takes its rig along."""
        missing = row.needs()
        if missing:
            return without(row, skipped=missing)
        try:
            rig = self.rig(row)
            return asyncio.run(power_cut.run(rig, row) if row.rig == "killed" else run_row(rig, row))
        except (UsageError, RemoteError) as error:
            self.stop()
            return without(row, reason=str(error))


async def _first_episode(rig: Rig) -> None:
    async with driving(rig, "teleop") as scene:
        await record(scene)
