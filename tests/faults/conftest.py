"""One robot for the whole module; after every test, what was published is unchanged and nothing blew up."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.rig import Rig, record
from tests.runtime.broker import Broker
from tests.tiny_policy import Policies
from tests.tools.acting import driving


@pytest.fixture(scope="module")
def rig(policies: Policies, short_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    broker = None
    if any(shutil.which("mosquitto", path=path) for path in (None, "/usr/sbin:/usr/local/sbin")):
        broker = Broker(tmp_path_factory.mktemp("broker"))
        broker.start()
    rig = Rig(short_dir, policies, broker)
    asyncio.run(_first_episode(rig))
    yield rig
    rig.stop()
    if broker is not None:
        broker.stop()


async def _first_episode(rig: Rig) -> None:
    async with driving(rig.sim) as (_, control):
        await record(rig, control)


@pytest.fixture(autouse=True)
def nothing_published_changes_and_nothing_blows_up(rig: Rig) -> Iterator[None]:
    before = rig.digests()
    assert before
    yield
    after = rig.digests()
    assert {episode: after.get(episode) for episode in before} == before
    log = rig.sim.log.read_text(errors="replace")
    assert "Traceback" not in log, log[log.index("Traceback") :][:2000]
