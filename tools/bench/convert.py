"""`ratchet bench convert`: v2.1 to v3.0, ours beside LeRobot's own converter on the same set in the same run.

Each runs as a process of its own on a copy, in turn, so often; what is timed is the whole process, and
inside it the conversion alone (LeRobot spends seconds on its imports). Ours verifies what it wrote, LeRobot's
does not.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from tools.bench.common import show
from tools.errors import UsageError
from tools.options import PATH, json_flag
from tools.progress import bar

_OURS = """
import sys, time, json, resource
from pathlib import Path
from episodes.lerobot.convert import ConvertOptions, convert_v30
from episodes.lerobot.plan import Limits
started = time.perf_counter()
report = convert_v30(Path(sys.argv[1]), Path(sys.argv[2]), ConvertOptions(workers=int(sys.argv[3])))
taken = time.perf_counter() - started
print(json.dumps({"seconds": taken, "rows": report.rows, "episodes": len(report.episodes),
                  "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""
_THEIRS = """
import sys, time, json, resource
from pathlib import Path
from lerobot.datasets.v30.convert_dataset_v21_to_v30 import convert_dataset
root = Path(sys.argv[1])
started = time.perf_counter()
convert_dataset(repo_id=root.name, root=root.parent, push_to_hub=False)
taken = time.perf_counter() - started
print(json.dumps({"seconds": taken, "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


@click.command(
    "convert",
    epilog="\b\nExample:\n  ratchet bench convert dataset --lerobot lerobot/bin/python --json\n",
)
@click.argument("source", metavar="SRC", type=PATH)
@click.option("--lerobot", type=PATH, help="An interpreter that has LeRobot 0.4.4 [default: ours alone].")
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True)
@click.option("--workers", type=click.IntRange(1, 64), help="Ours: files at a time [default: one a core].")
@json_flag
def command(source: Path, lerobot: Path | None, rounds: int, workers: int | None, as_json: bool) -> None:
    """Time the conversion of the v2.1 set SRC to v3.0."""
    count = workers or len(os.sched_getaffinity(0))
    peers: dict[str, list[dict[str, float]]] = {"ratchet": []}
    if lerobot is not None:
        peers["lerobot"] = []
    with bar("converting", rounds * len(peers), "runs") as update:
        for _ in range(rounds):
            for name, runs in peers.items():
                runs.append(_run(name, source, lerobot, count))
                update(sum(len(r) for r in peers.values()))
    show(_figures(peers, count), as_json)


def _run(name: str, source: Path, lerobot: Path | None, workers: int) -> dict[str, float]:
    """One conversion of a fresh copy; ``process_s`` is the whole process."""
    with tempfile.TemporaryDirectory(prefix="ratchet-bench-") as folder:
        copy = Path(folder) / "set"
        shutil.copytree(source, copy, copy_function=shutil.copyfile)
        os.sync()  # ours waits for the disk: not for that of the copy
        if name == "ratchet":
            command = [sys.executable, "-c", _OURS, str(copy), str(copy.with_name("new")), str(workers)]
        else:
            command = [str(lerobot), "-c", _THEIRS, str(copy)]
        started = time.perf_counter()
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}
        )
        taken = time.perf_counter() - started
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UsageError(f"the converter of {name} failed: {last}")
        figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return {**figures, "process_s": taken}


def _figures(peers: dict[str, list[dict[str, float]]], workers: int) -> dict[str, Any]:
    out: dict[str, Any] = {"workers": workers}
    first = peers["ratchet"][0]
    out |= {"episodes": first["episodes"], "rows": first["rows"]}
    for name, runs in peers.items():
        out[name] = {
            key: round(statistics.median(r[key] for r in runs), 3)
            for key in ("seconds", "process_s", "rss_mb")
        }
    if "lerobot" in peers:
        for key in ("seconds", "process_s"):
            out[f"faster_{key}"] = round(out["lerobot"][key] / out["ratchet"][key], 2)
        out |= {"budget": "faster than LeRobot's converter", "held": out["faster_seconds"] > 1}
    return out
