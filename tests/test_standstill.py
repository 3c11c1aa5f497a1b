"""A failed test is repeated only when the machine stood still meanwhile."""

from __future__ import annotations

import time
from pathlib import Path

from tests.standstill import WORST_S, Standstill


def test_only_what_ended_since_counts(tmp_path: Path) -> None:
    watch = Standstill(tmp_path / "none")
    file = tmp_path / "standstill-0"
    watch._files = [file]
    assert watch.worst_since(0.0) == 0.0
    now = time.monotonic()
    file.write_text(f"{now - 10} 0.5\n{now - 1} 0.2\n{now} 0.1\n")
    assert watch.worst_since(now - 20) == 0.5
    assert watch.worst_since(now - 2) == 0.2 > WORST_S
    assert watch.worst_since(now + 1) == 0.0
    watch.close()
