"""The fault table: every row there is, in the order of docs/faults.md."""

from __future__ import annotations

from tools.faults import bus_rows, disk_rows, outside_rows, process_rows, time_rows
from tools.faults.row import Row

ROWS: tuple[Row, ...] = (
    *process_rows.ROWS,
    *bus_rows.ROWS,
    *outside_rows.ROWS,
    *disk_rows.ROWS,
    *time_rows.ROWS,
)
