"""`ratchet bench convert`: v2.1 to v3.0, ours beside LeRobot's own converter on the same set in the same run.

Each runs as a process of its own on a copy, in turn, so often; what is timed is the whole process, and
inside it the conversion alone (LeRobot spends seconds on its imports). Ours reads back and compares what it
wrote and waits for the disk, which LeRobot's does not: that is included, the comparing also printed as
``checked_s`` (part of it happens while videos are copied). A small set is mostly fixed costs: the same is
done with a larger one, the set's episodes over and over.
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

from episodes.lerobot.layout import Dataset
from tools.bench.common import show
from tools.bench.repeat_set import repeat_set
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
print(json.dumps({"seconds": taken, "checked_s": report.checked_s, "rows": report.rows,
                  "episodes": len(report.episodes),
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
@click.option("--large", type=click.IntRange(0, 100_000), default=200, show_default=True,
              help="Episodes of the larger set; 0: only SRC as it is.")  # fmt: skip
@click.option("--workers", type=click.IntRange(1, 64), help="Ours: files at a time [default: one a core].")
@json_flag
def command(
    source: Path, lerobot: Path | None, rounds: int, large: int, workers: int | None, as_json: bool
) -> None:
    """Time the conversion of the v2.1 set SRC to v3.0."""
    count = workers or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="ratchet-bench-") as folder:
        sets = {"": source}
        if large > len(Dataset(source).episodes):
            sets["large."] = repeat_set(source, Path(folder) / "large", large)
        names = ["ratchet", "lerobot"] if lerobot is not None else ["ratchet"]
        runs: dict[tuple[str, str], list[dict[str, float]]] = {(s, n): [] for s in sets for n in names}
        with bar("converting", rounds * len(runs), "runs") as update:
            for done in range(rounds):
                for number, ((which, name), each) in enumerate(runs.items()):
                    each.append(_run(name, sets[which], lerobot, count, Path(folder)))
                    update(done * len(runs) + number + 1)
    show(_figures(runs, list(sets), count), as_json)


def _run(name: str, source: Path, lerobot: Path | None, workers: int, folder: Path) -> dict[str, float]:
    """One conversion of a fresh copy; ``process_s`` is the whole process."""
    copy = folder / "run" / "set"
    shutil.copytree(source, copy, copy_function=shutil.copyfile)
    os.sync()  # ours waits for the disk: not for that of the copy
    if name == "ratchet":
        command = [sys.executable, "-c", _OURS, str(copy), str(copy.with_name("new")), str(workers)]
    else:
        command = [str(lerobot), "-c", _THEIRS, str(copy)]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    taken = time.perf_counter() - started
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UsageError(f"the converter of {name} failed: {last}")
    shutil.rmtree(copy.parent)
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return {**figures, "process_s": taken}


def _figures(
    runs: dict[tuple[str, str], list[dict[str, float]]], sets: list[str], workers: int
) -> dict[str, Any]:
    out: dict[str, Any] = {"workers": workers}
    faster = []
    for which in sets:
        first = runs[which, "ratchet"][0]
        out |= {f"{which}episodes": first["episodes"], f"{which}rows": first["rows"]}
        medians = {}
        for name in [n for w, n in runs if w == which]:
            each = runs[which, name]
            keys = ("seconds", "process_s", "rss_mb", *(["checked_s"] if name == "ratchet" else []))
            medians[name] = {k: round(statistics.median(r[k] for r in each), 3) for k in keys}
            out[f"{which}{name}"] = medians[name]
        if "lerobot" in medians:
            for key in ("seconds", "process_s"):
                ratio = round(medians["lerobot"][key] / medians["ratchet"][key], 2)
                out[f"{which}faster_{key}"] = ratio
                faster.append(ratio)
    if faster:
        out |= {"budget": "faster than LeRobot's converter", "held": min(faster) > 1}
    return out
