"""One robot for everything that is done to it; what was published never changes, and nothing blows up."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny_policy import Policies
from tools.faults.rig import Rig, Served
from tools.faults.rigs import Rigs
from tools.faults.table import ROWS


@pytest.fixture(scope="session")
def rigs(policies: Policies) -> Iterator[Rigs]:
    directory = Path(tempfile.mkdtemp(prefix="ratchet-"))  # short: a unix socket's path has at most 107 bytes
    with Rigs(directory, lambda: Served(policies.first.path, policies.trust)) as running:
        yield running
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def rig(rigs: Rigs) -> Iterator[Rig]:
    """The shared one, watched."""
    shared = rigs.rig(ROWS[0])
    before, said = shared.digests(), shared.log.stat().st_size
    assert before
    yield shared
    after = shared.digests()
    assert {episode: after.get(episode) for episode in before} == before
    log = shared.said(said)
    assert "Traceback" not in log, log[log.index("Traceback") :][:2000]
