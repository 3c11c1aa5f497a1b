"""`ratchet bench crash`: a recorder killed hundreds of times, and the power cut at every file operation."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from tools.bench.common import show, work_folder
from tools.console import say
from tools.crash.checks import LOSS_LIMIT_S
from tools.crash.cuts import run_cuts
from tools.crash.kills import run_kills
from tools.options import PATH, json_flag
from tools.progress import bar


@click.command(epilog="\b\nExample:\n  ratchet bench crash --kills 300 --cuts 1000 --json")
@click.option("--kills", type=click.IntRange(1, 100_000), default=300, show_default=True)
@click.option("--cuts", type=click.IntRange(1, 100_000), default=1000, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--dir", "where", type=PATH, help="A folder on the disk to be tried [default: /tmp].")
@json_flag
def command(kills: int, cuts: int, seed: int, where: Path | None, as_json: bool) -> None:
    """Kill a recorder at random instants, cut the power at every file operation; look at what is left.

    After each crash the store must open, every published episode must verify byte by byte, and of the
    running one at most a second may be lost. The killed recorders write JPEG and H.264 episodes in turn.
    """
    logging.getLogger("episodes").setLevel(logging.CRITICAL)  # it has much to say about what is done to it
    with work_folder("ratchet-crash-", where) as folder:
        with bar("kills", kills) as update:
            killed = run_kills(folder, kills, seed, update)
        with bar("cuts", cuts) as update:
            cut = run_cuts(folder, cuts, seed, update)
    parts = (killed, cut)
    for problem in (p for part in parts for p in part.problems):
        say(f"PROBLEM {problem}")
    opened = sum(p.opened for p in parts)
    lost = sum(p.published_lost for p in parts)
    seconds = max(p.seconds_lost_max for p in parts)
    show(
        {
            "kills": killed.crashes,
            "cuts": cut.crashes,
            "opened": opened,
            "published_checked": sum(p.published for p in parts),
            "published_lost": lost,
            "recovered": sum(p.recovered for p in parts),
            "recovered_h264": killed.recovered_h264,
            "frames_lost_max": max(p.frames_lost_max for p in parts),
            "seconds_lost_max": round(seconds, 3),
            "budget": {
                "opened": killed.crashes + cut.crashes,
                "published_lost": 0,
                "seconds_lost": LOSS_LIMIT_S,
            },
            "held": opened == killed.crashes + cut.crashes
            and lost == 0
            and seconds <= LOSS_LIMIT_S
            and not any(p.problems for p in parts),
        },
        as_json,
    )
