"""The fault table for people: lines on a terminal, and the part of docs/faults.md that is generated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tools.errors import UsageError
from tools.faults.row import Measured

BEGIN = "<!-- measured: begin (ratchet bench faults --markdown docs/faults.md) -->"
END = "<!-- measured: end -->"

_HEAD = (
    "| fault | how | the arm | worst goal: from measured, speed, beyond limits | ticks missed | goes on "
    "| held |",
    "|---|---|---|---|---|---|---|",
)


def line(row: Measured) -> str:
    """One row as one line."""
    if row.skipped:
        return f"{row.name}: skipped, {row.skipped}"
    verdict = "held" if row.held else f"NOT HELD ({row.reason})"
    excess = f"beyond {row.beyond_rad:g} rad {row.beyond_what}".rstrip()
    return f"{row.name}: {_state(row)}, {_recovery(row)}, {excess}: {verdict}"


def write_markdown(path: Path, rows: Sequence[Measured]) -> None:
    """Replace what stands between the markers in ``path``. Raises UsageError when they are not there."""
    text = path.read_text(encoding="utf-8")
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        raise UsageError(f"{path} has no place for the table; put the lines {BEGIN} and {END} into it")
    table = "\n".join([*_HEAD, *(_cells(row) for row in rows)])
    partial = path.with_suffix(".partial")
    partial.write_text(f"{text[: begin + len(BEGIN)]}\n\n{table}\n\n{text[end:]}", encoding="utf-8")
    partial.replace(path)


def _cells(row: Measured) -> str:
    if row.skipped:
        cells = [row.done, row.how, f"skipped: {row.skipped}", "", "", "", ""]
    else:
        worst = f"{row.goal_distance_rad:g} rad, {row.goal_speed_rad_s:g} rad/s, {row.beyond_rad:g} rad"
        missed = f"{row.missed} of {row.ticks + row.missed}"
        how = f"{row.how} ({row.drive}). {row.note[:1].upper()}{row.note[1:]}".rstrip(" .") + "."
        held = "yes" if row.held else "**no**"
        cells = [row.done, how, _state(row), worst, missed, _recovery(row), held]
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _state(row: Measured) -> str:
    if row.state_s is None:
        return f"{row.state or '?'} instead of {row.promised}"
    if row.promised == "moves on":
        return f"{row.state}, paused {row.paused_s:.2f} s at most"
    return f"{row.state} after {row.state_s:.2f} s (promised: {row.promised} within {row.within_s:g} s)"


def _recovery(row: Measured) -> str:
    if row.recovers == "nothing stops":
        return row.recovers
    after = "never" if row.recovered_s is None else f"{row.recovered_s:.1f} s"
    return f"{row.recovers}, {after}"
