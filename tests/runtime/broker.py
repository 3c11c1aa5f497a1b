"""A real mosquitto for tests, which are skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from protos.access.tls import TlsFiles
from tools.faults import broker


class Broker(broker.Broker):
    """As ``tools.faults.broker.Broker``; skips the test when mosquitto is not installed."""

    def __init__(self, directory: Path, tls: TlsFiles | None = None) -> None:
        if broker.find_mosquitto() is None:
            pytest.skip("no mosquitto binary here (apt-get install mosquitto)")
        super().__init__(directory, tls)
