"""`ratchet bench loader` runs, and spells its figures as promised."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tools.bench import loader
from tools.bench.loader import command, judged
from tools.errors import UsageError

PROMISED = (
    "samples_per_s",
    "samples_per_s_cached",
    "decoder_limit_per_s",
    "first_batch_s",
    "rss_mb",
    "rss_cached_mb",
)


def _run(*arguments: str) -> dict[str, Any]:
    before = os.sched_getaffinity(0)
    try:
        done = CliRunner().invoke(command, [*arguments, "--json"])
    finally:
        os.sched_setaffinity(0, before)
    assert done.exit_code == 0, done.exception
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def test_the_figures_at_full_size_stand_at_the_top(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr(loader, "_pictures", lambda *_: {})
    monkeypatch.setattr(loader, "_record", lambda *_: None)
    monkeypatch.setattr(loader, "_measure", lambda *_: dict.fromkeys((*PROMISED, "of_decoder"), next(sizes)))
    figures = _run()
    assert {name: figures[name] for name in PROMISED} == {
        **dict.fromkeys(PROMISED, 1.0), "rss_mb": 2.0, "rss_cached_mb": 2.0,
    }  # fmt: skip
    assert figures["training"]["samples_per_s"] == 2.0
    assert figures["h264"]["samples_per_s"] == 3.0


@pytest.mark.slow
def test_a_short_run_gives_every_figure() -> None:
    figures = _run("--seconds", "0.2", "--episodes", "1", "--frames", "110")
    assert all(figures[name] > 0 for name in PROMISED)
    assert figures["samples_per_s"] == figures["full"]["samples_per_s"]
    assert figures["training"]["samples_per_s"] > 0
    assert figures["h264"]["samples_per_s"] > 0
    assert "decoder_limit_per_s" not in figures["h264"]
    assert set(figures["budgets"]["full_of_decoder"]) == {"reached", "budget", "held"}


def test_a_budget_is_judged_against_the_better_figure_of_the_other() -> None:
    size = {"samples_per_s": 300.0, "samples_per_s_cached": 2000.0, "of_decoder": 0.9}
    out = judged({"full": size, "training": size, "lerobot": {"one_process": 36.0, "two_workers": 60.0}})
    assert out["full_times_lerobot"] == {"reached": 5.0, "budget": 5.0, "held": True}
    assert out["training_times_lerobot"]["held"] is False


@pytest.mark.parametrize("name", ["loader", "recorder", "crash"])
def test_a_folder_that_is_not_there_is_one_line(name: str, tmp_path: Path) -> None:
    module = importlib.import_module(f"tools.bench.{name}")
    before = os.sched_getaffinity(0)
    done = CliRunner().invoke(module.command, ["--dir", str(tmp_path / "none")])
    os.sched_setaffinity(0, before)
    assert isinstance(done.exception, UsageError)
    assert "no folder can be made there (No such file or directory)" in str(done.exception)
