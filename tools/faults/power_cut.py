"""The row in which the whole service dies, recorder included; the bench stays, as the arm would."""

from __future__ import annotations

import asyncio
import time

from episodes.store import EpisodeStore
from hal.types import NUM_JOINTS
from tools.errors import UsageError
from tools.faults.processes import kill
from tools.faults.rig import Rig
from tools.faults.row import Measured, Row
from tools.faults.run import Outcome, measured
from tools.faults.scene import driving, until

_RECORDED_S = 1.5


async def run(rig: Rig, row: Row) -> Measured:
    """Kill the runtime while it records in teleoperation, see the motors stop, start it again."""
    before, since = rig.digests(), rig.log.stat().st_size
    outcome = Outcome()
    async with driving(rig, row.drive) as scene:
        rig.bench.judge_reset()
        episode = (await scene.control.start_episode("cut short")).id
        await asyncio.sleep(_RECORDED_S)
        begun = time.monotonic()
        kill(rig.pid)
        await until(
            lambda: rig.bench.judge().watchdog_stops >= NUM_JOINTS, "the motors' watchdog stops every motor"
        )
        outcome.state, outcome.state_s = "watchdog", time.monotonic() - begun
        rig.service.process.wait()
    await until(lambda: not rig.robot_processes(), "its processes have ended")
    outcome.moved_before_enable = rig.bench.judge().last_change_ns * 1e-9 > begun + row.within_s
    if set(rig.digests()) != set(before):
        raise UsageError("an episode that was cut short is published")
    await asyncio.to_thread(rig.start_again)
    note = _recovered(rig, episode)
    async with rig.client() as robot:
        outcome.moved_before_enable |= (await robot.state()).mode != "off"
    begun = time.monotonic()
    async with driving(rig, row.drive) as scene:
        outcome.recovered_s = time.monotonic() - begun
        loop = (await scene.robot.state()).loop
        outcome.ticks, outcome.missed = loop.ticks, loop.missed
        seen = rig.bench.judge()
    return measured(rig, row, outcome, seen, before, since, note)


def _recovered(rig: Rig, episode: str) -> str:
    with EpisodeStore.open(rig.paths.store, create=False, mode="r") as store:
        meta = store.read(episode).meta
        if not (meta.recovered and store.verify().ok):
            raise UsageError(f"episode {episode} was not recovered")
        return f"the episode cut short was recovered at the next start, with {meta.ticks} ticks"
