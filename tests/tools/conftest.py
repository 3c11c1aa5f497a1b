"""One simulated robot for all tests here: bench, policy server and `ratchet up`, each a real process."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.broker import Broker
from tests.tiny_policy import SIZE, Policies
from tools.sim import SimRobot, SimSettings, start_sim


@pytest.fixture(scope="session")
def run_dir() -> Iterator[Path]:
    """Short: a unix socket's path has at most 107 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="ratchet-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str | None]:
    """HOST:PORT of a broker for the robot, or None where there is no mosquitto."""
    if not any(shutil.which("mosquitto", path=path) for path in (None, "/usr/sbin:/usr/local/sbin")):
        yield None
        return
    running = Broker(tmp_path_factory.mktemp("broker"))
    running.start()
    yield f"127.0.0.1:{running.port}"
    running.stop()


@pytest.fixture(scope="session")
def sim(policies: Policies, run_dir: Path, broker: str | None) -> Iterator[SimRobot]:
    settings = SimSettings(
        bundle=policies.first.path,
        trust=policies.trust,
        size=(SIZE, SIZE),
        name="tester",
        broker=broker,
        keep_last_s=5.0,
    )
    with start_sim(run_dir, settings) as running:
        yield running
