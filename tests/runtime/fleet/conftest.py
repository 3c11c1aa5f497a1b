"""A broker, an agent's configuration for it, and the robot behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet_helpers import KEY

from runtime.fleet.config import FleetConfig
from tests.runtime.broker import Broker
from tests.runtime.memory_facade import MemoryFacade


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    (tmp_path / "broker").mkdir()
    broker = Broker(tmp_path / "broker")
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def config(broker: Broker, tmp_path: Path) -> FleetConfig:
    return FleetConfig(
        port=broker.port,
        plaintext=True,
        journal=tmp_path / "fleet.db",
        keys={"ops": {"public": KEY.public_key().public_bytes_raw().hex(), "role": "deploy"}},
        keepalive_s=2,
        connect_timeout_s=2.0,
        will_delay_s=0,
        backoff_min_s=0.05,
        backoff_max_s=0.4,
        state_poll_s=0.02,
        telemetry_period_s=0.1,
    )


@pytest.fixture
def facade() -> MemoryFacade:
    facade = MemoryFacade()
    facade.mode = "ready"
    return facade
