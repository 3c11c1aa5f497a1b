"""`ratchet bench contact`: how soon a blocked arm stops, and how often one stops for nothing."""

from __future__ import annotations

import collections
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from runtime.contact import MOTORS
from tools.bench.common import quantile, show
from tools.bench.contact_motion import WARM_C_S, WORN_NM
from tools.errors import UsageError
from tools.options import FiniteRange, json_flag
from tools.progress import bar

BUDGET = {"stop_ms_max": 150.0, "false_stops_per_hour": 1.0}
EXAMPLES = """
\b
Examples:
  ratchet bench contact --hours 2 --json > contact.json
  ratchet bench contact --hours 0.1 --trials 40
"""
_ROOT = Path(__file__).resolve().parents[2]


@click.command(epilog=EXAMPLES)
@click.option("--hours", type=FiniteRange(0.001, 1000.0), default=2.0, show_default=True,
              help="Of ordinary motion, simulated.")  # fmt: skip
@click.option("--trials", type=click.IntRange(1, 100_000), default=300, show_default=True,
              help="Runs against a block.")  # fmt: skip
@click.option("--processes", type=click.IntRange(1, 64), default=2, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, help="Of the first stretch and the first trial.")
@json_flag
def command(hours: float, trials: int, processes: int, seed: int, as_json: bool) -> None:
    """Run a simulated arm in lockstep through ordinary motion, then against blocks.

    The world, the servo core and the contact stop are those of `ratchet up --sim`; nothing is rendered.
    """
    with bar("contact", round(hours * 3600) + trials) as update:
        parts = run_parts(hours, trials, processes, seed, update)
    show(figures(parts), as_json)


def run_parts(
    hours: float, trials: int, processes: int, seed: int, update: Callable[[int], None]
) -> list[dict[str, Any]]:
    """The results of ``processes`` parts with every n-th seed each. Raises UsageError when one fails."""
    done = [0.0] * processes
    results: list[dict[str, Any] | None] = [None] * processes
    children = [
        _start(hours / processes, len(range(i, trials, processes)), seed + i, processes)
        for i in range(processes)
    ]

    def follow(index: int) -> None:
        for line in children[index].stdout or ():
            told = json.loads(line)
            if "done" in told:
                done[index] = told["done"]
                update(round(sum(done)))
            else:
                results[index] = told

    threads = [threading.Thread(target=follow, args=(i,)) for i in range(processes)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for child in children:
            child.kill()
            child.wait()
    found = [result for result in results if result is not None]
    if len(found) < processes:
        raise UsageError("a part of the benchmark ended early; its output is above")
    return found


def _start(hours: float, trials: int, first: int, stride: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tools.bench.contact_part"]
    command += [str(hours), str(trials), str(first), str(stride)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, cwd=_ROOT)


def figures(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the parts found, together."""
    hours = sum(part["hours"] for part in parts)
    stops = [stop for part in parts for stop in part["stops"]]
    trials = [trial for part in parts for trial in part["trials"]]
    ms = [trial["stop_ms"] for trial in trials if trial["stop_ms"] is not None]
    still = [trial["still_ms"] for trial in trials if trial["still_ms"] is not None]
    joints = {
        joint: {
            "trials": len(rows),
            "stop_ms_max": max((row["stop_ms"] or 0.0) for row in rows),
            "missed": sum(row["stop_ms"] is None for row in rows),
            "reported": dict(collections.Counter(row["reported"] for row in rows)),
        }
        for joint, rows in _by_joint(trials).items()
    }
    missed = len(trials) - len(ms)
    per_hour = round(len(stops) / hours, 3)
    held = {
        "stop_ms_max": not missed and bool(ms) and max(ms) <= BUDGET["stop_ms_max"],
        "false_stops_per_hour": per_hour < BUDGET["false_stops_per_hour"],
    }
    return {
        "hours": round(hours, 3),
        "stretches": sum(part["stretches"] for part in parts),
        "grasps": sum(part["grasps"] for part in parts),
        "false_stops": len(stops),
        "false_stops_per_hour": per_hour,
        "false_stop_list": stops[:20],
        "trials": len(trials),
        "stopped": len(ms),
        "missed": missed,
        "early": sum(trial["early"] for trial in trials),
        "stop_ms_p50": quantile(ms, 50),
        "stop_ms_p99": quantile(ms, 99),
        "stop_ms_max": max(ms, default=0.0),
        "standstill_to_stop_ms_p50": quantile(still, 50),
        "standstill_to_stop_ms_max": max(still, default=0.0),
        "speed_rad_s": [min(t["speed"] for t in trials), max(t["speed"] for t in trials)] if trials else [],
        "joints": joints,
        "scales": {model: motor.model_dump() for model, motor in MOTORS.items()},
        "wear": {"friction_nm": WORN_NM, "heat_c_s": WARM_C_S},
        "budget": BUDGET,
        "held": {**held, "all": all(held.values())},
        "definitions": DEFINITIONS,
    }


def _by_joint(trials: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {}
    for trial in trials:
        rows.setdefault(trial["joint"], []).append(trial)
    return rows


DEFINITIONS = {
    "hours": "simulated ordinary motion: demonstrations with a grasp, the same as a policy does it, free "
    "motion at up to 3.3 rad/s; friction and heating of the motors vary",
    "stop_ms": "from the first step in which the physics sees block and arm touch to the step that freezes "
    "the goals at the measured pose; one joint moves at 0.8 to 2.3 rad/s",
    "trials": "blocks that block: without the contact stop the joint covers less than half of the commanded "
    "way in the 150 ms after the touch",
    "standstill_to_stop_ms": "from the first step after the touch in which the joint is slower than 15 % of "
    "its commanded speed",
    "joints": "by the joint that moved; reported says which joint the stop named",
    "early": "stops before the touch",
}
