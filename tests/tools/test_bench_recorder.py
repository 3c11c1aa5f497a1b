"""`ratchet bench recorder` runs, and its figures are about what it recorded."""

from __future__ import annotations

import json
import os

import pytest
from click.testing import CliRunner

from tools.bench.recorder import command


@pytest.mark.slow
def test_the_figures_of_a_short_run() -> None:
    before = os.sched_getaffinity(0)
    try:
        done = CliRunner().invoke(
            command, ["--seconds", "2", "--short", "1", "--cameras", "1", "--fps", "10", "--json"]
        )
    finally:
        os.sched_setaffinity(0, before)
    assert done.exit_code == 0, done.exception
    figures = json.loads(done.stdout)
    assert figures["frames"] + figures["dropped"] == 3 * 2 * 10
    assert figures["psnr_db"] > 35
    assert figures["size_over_lerobot"] > 0
    assert figures["lerobot_av1"]["psnr_db"] > 25
