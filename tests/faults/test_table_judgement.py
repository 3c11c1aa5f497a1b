"""How rows of the fault table are judged and shown: what must not pass does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hal.bench.judge import JudgeReport
from hal.types import NUM_JOINTS
from runtime.guard import GuardLimits
from tools.bench.faults import command
from tools.errors import UsageError
from tools.faults.report import BEGIN, END, line, write_markdown
from tools.faults.row import beyond
from tools.faults.run import without
from tools.faults.table import ROWS

LIMITS = GuardLimits(position_min=(-1.0,) * 6, position_max=(1.0,) * 6)
QUIET: dict[str, Any] = {
    "reset_ns": 0,
    "writes": 10,
    "low": (-0.5,) * NUM_JOINTS,
    "high": (0.5,) * NUM_JOINTS,
    "distance": (0.1,) * NUM_JOINTS,
    "step": (0.01,) * NUM_JOINTS,
    "yielded": (0.5,) * NUM_JOINTS,
    "speed": (2.0,) * NUM_JOINTS,
    "acceleration": (30.0,) * NUM_JOINTS,
    "last_write_ns": 1,
    "last_change_ns": 1,
    "torque": (True,) * NUM_JOINTS,
    "watchdog_stops": 0,
}


def seen(**figures: float) -> JudgeReport:
    """A quiet course but for what the elbow was told."""
    changed = {name: (*QUIET[name][:2], value, *QUIET[name][3:]) for name, value in figures.items()}
    return JudgeReport(**{**QUIET, **changed})


def test_a_quiet_course_is_within_every_limit() -> None:
    assert beyond(seen(), LIMITS) == (0.0, "")
    assert beyond(seen(high=1.001, step=3.5 / 240 + 0.001), LIMITS)[0] == 0.0, "a tick is no excess"
    assert beyond(JudgeReport(**{**QUIET, "low": (None,) * 6, "high": (None,) * 6}), LIMITS)[0] == 0.0


@pytest.mark.parametrize(
    ("told", "excess"),
    [
        ({"low": -1.2}, 0.2),
        ({"high": 1.5}, 0.5),
        ({"step": 0.4}, 0.385),
        ({"distance": 0.8}, 0.17),
        ({"speed": 10.0}, 0.3),
    ],
)
def test_what_any_motor_is_told_beyond_a_limit_counts(told: dict[str, float], excess: float) -> None:
    found, what = beyond(seen(**told), LIMITS)
    assert found == pytest.approx(excess, abs=0.01)
    (figure,) = told
    assert what == f"{ {'low': 'position', 'high': 'position'}.get(figure, figure) } of elbow_flex"


def test_a_row_that_came_to_nothing_is_not_held() -> None:
    row = ROWS[0]
    assert not without(row, reason="the arm does not move").held
    assert "NOT HELD (the arm does not move)" in line(without(row, reason="the arm does not move"))
    assert "skipped, no strace" in line(without(row, skipped="no strace"))


def test_names_are_unique_and_every_promise_is_complete() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert (row.state == "moves on") == (row.recovers in ("nothing stops", "by itself")) or (
            row.state == "stands still" and row.recovers == "by itself"
        ), row.name


def test_the_table_goes_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_markdown(page, [without(row) for row in ROWS[:3]])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert [text.count(row.done) for row in ROWS[:3]] == [1, 1, 1]
    page.write_text("no markers")
    with pytest.raises(UsageError, match="no place for the table"):
        write_markdown(page, [])


def test_the_document_has_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "faults.md").read_text()
    table = page[page.index(BEGIN) : page.index(END)]
    for row in ROWS:
        (shown,) = [text for text in table.splitlines() if text.startswith(f"| {row.done} |")]
        assert shown.rstrip(" |").endswith("yes"), "measure it again: ratchet bench faults --markdown"


def test_an_unknown_row_is_refused_with_the_names_there_are() -> None:
    result = CliRunner().invoke(command, ["--only", "earthquake"])
    assert result.exit_code == 2
    assert "cable-out-2s" in result.output
