"""Every row of the fault table, done to a whole robot as `ratchet bench faults` does it."""

from __future__ import annotations

import pytest

from tools.faults.processes import processes
from tools.faults.report import line
from tools.faults.rigs import Rigs
from tools.faults.row import Row
from tools.faults.table import ROWS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row(rigs: Rigs, row: Row) -> None:
    seen = rigs.run(row)
    if seen.skipped:
        pytest.skip(seen.skipped)
    assert seen.state == row.state, line(seen)
    assert seen.state_s is not None
    assert seen.state_s <= row.within_s, line(seen)
    assert seen.beyond_rad == 0.0, line(seen)
    assert not seen.moved_before_enable, line(seen)
    assert seen.recovered_s is not None, line(seen)
    assert seen.episodes > 0
    assert seen.episodes_unchanged
    assert not seen.traceback
    assert seen.held, line(seen)


def test_after_all_that_the_service_ends_in_order_and_leaves_no_process(rigs: Rigs) -> None:
    """Last, of every robot that the rows were done to."""
    rigs.rig(ROWS[-1])
    rigs.stop()
    assert set(rigs.statuses) == {0}
    assert processes(str(rigs.directory)) == []
