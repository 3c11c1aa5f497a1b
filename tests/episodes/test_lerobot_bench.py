"""The larger set that the converter's benchmark makes is a sound one; the benchmark prints its figures."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner
from lerobot_helpers import make_set

from episodes.lerobot.convert import convert_v30
from episodes.lerobot.lint import lint
from tools.bench.convert import command
from tools.bench.repeat_set import repeat_set


def test_a_repeated_set_is_sound(tmp_path: Path) -> None:
    large = repeat_set(make_set(tmp_path / "small", (4, 6, 5), stats=True), tmp_path / "large", 7)
    report = lint(large, pictures=False)
    assert (report.findings, report.episodes, report.rows) == ([], 7, 34)
    assert len(convert_v30(large, tmp_path / "new").episodes) == 7


def test_figures_of_both_sets_are_printed(tmp_path: Path) -> None:
    small = make_set(tmp_path / "small", (4, 6), stats=True)
    done = CliRunner().invoke(command, [str(small), "--rounds", "1", "--large", "3", "--json"])
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)
    assert (figures["episodes"], figures["rows"]) == (2, 10)
    assert (figures["large.episodes"], figures["large.rows"]) == (3, 14)
    assert 0 < figures["large.ratchet"]["checked_s"] < figures["large.ratchet"]["process_s"]
