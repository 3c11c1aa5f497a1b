"""Many lockstep episodes on all cores: demonstrations into a store, and rollouts of a bundle.

Each core gets a process of its own with every n-th seed; recorder processes write stores of their
own, which are then absorbed. The parts talk in JSON and npz files, so nothing is unpickled.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tools.errors import UsageError

Progress = Callable[[int, int], None]

TASK = "pick up the cube and put it in the zone"
BATCH = 25
_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class MotorFault:
    """Wear the bench adds to a joint of the follower: friction N·m, heating °C/s."""

    joint: str
    friction_nm: float
    heat_c_s: float


@dataclass(frozen=True, slots=True)
class Part:
    """What one process does; written to a file, read by the process."""

    kind: str  # "demonstrate" or "rollout"
    seeds: tuple[int, ...]
    region: str
    out: str
    record: str | None = None
    bundle: str | None = None
    trust: str | None = None
    backend: str = "onnx"
    take_over: bool = False
    signals: bool = False
    latency: bool = False
    fault: MotorFault | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a batch of rollouts came to: rows in seed order, and times of single inferences, ms."""

    episodes: list[dict[str, Any]]
    latencies_ms: list[float]


def demonstrate(
    store: Path,
    seeds: Sequence[int],
    region: str,
    workers: int,
    progress: Progress | None = None,
    fault: MotorFault | None = None,
) -> int:
    """Record one scripted demonstration a seed into ``store``; how many fulfilled the task.

    With ``fault`` the arm's motor is worn; the episodes' names then say so.
    """
    results = _run(
        [
            Part("demonstrate", tuple(seeds[i::workers]), region, "", record="store", fault=fault)
            for i in range(min(workers, len(seeds)))
        ],
        len(seeds),
        store,
        progress,
    )
    return sum(bool(r["success"]) for part in results for r in part["episodes"])


def rollouts(
    bundle: Path,
    trust: Path,
    seeds: Sequence[int],
    region: str,
    workers: int,
    *,
    backend: str = "onnx",
    record: Path | None = None,
    take_over: bool = False,
    signals: Path | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """One rollout a seed through the real control path (see ``runtime.rollout.Rollout`` for the rows)."""
    parts = [
        Part(
            "rollout",
            tuple(seeds[i::workers]),
            region,
            "",
            record="store" if record else None,
            bundle=str(bundle),
            trust=str(trust),
            backend=backend,
            take_over=take_over,
            signals=signals is not None,
            latency=i == 0,
        )
        for i in range(min(workers, len(seeds)))
    ]
    results = _run(parts, len(seeds), record, progress, signals)
    episodes = [row for part in results for row in part["episodes"]]
    latencies = [ms for part in results for ms in part.get("latencies_ms", ())]
    return Outcome(sorted(episodes, key=lambda row: int(row["seed"])), latencies)


def _run(
    parts: list[Part],
    total: int,
    store: Path | None,
    progress: Progress | None,
    signals: Path | None = None,
) -> list[dict[str, Any]]:
    """Run the parts beside each other, absorb what they recorded, merge what they measured."""
    with tempfile.TemporaryDirectory(
        prefix="ratchet-lockstep-", dir=store.parent if store else None
    ) as scratch:
        folder = Path(scratch)
        processes = []
        try:
            for number, part in enumerate(parts):
                processes.append(_start(part, folder / f"{number}"))
            _wait(processes, folder, total, progress)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
        results = [json.loads((folder / f"{n}" / "result.json").read_text()) for n in range(len(parts))]
        if store is not None:
            _absorb(store, [folder / f"{n}" / "store" for n in range(len(parts))])
        if signals is not None:
            _merge_signals(signals, [folder / f"{n}" / "signals.npz" for n in range(len(parts))])
        return results


def _start(part: Part, folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir()
    values = asdict(part) | {"out": str(folder)}
    if part.record is not None:
        values["record"] = str(folder / part.record)
    (folder / "part.json").write_text(json.dumps(values))
    with (folder / "stderr").open("wb") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", "tools.lockstep_worker", str(folder / "part.json")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )


def _wait(
    processes: list[subprocess.Popen[bytes]], folder: Path, total: int, progress: Progress | None
) -> None:
    running = list(enumerate(processes))
    while running:
        for number, process in list(running):
            try:
                process.wait(_POLL_S)
            except subprocess.TimeoutExpired:
                continue
            running.remove((number, process))
            if process.returncode != 0:
                raise UsageError(_last_line(folder / f"{number}" / "stderr"))
        if progress is not None:
            progress(sum(_count(folder / f"{n}" / "done") for n in range(len(processes))), total)


def _count(path: Path) -> int:
    try:
        return int(path.read_text() or 0)
    except FileNotFoundError:
        return 0


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "a rollout process died without a word"


def _absorb(store: Path, others: list[Path]) -> None:
    from episodes.absorb import absorb
    from episodes.store import EpisodeStore

    with EpisodeStore.open(store, create=True) as target:
        for other in others:
            absorb(target, other)


def _merge_signals(out: Path, parts: list[Path]) -> None:
    """One npz of all parts, its episodes numbered through."""
    merged: dict[str, Any] = {}
    count = 0
    for path in parts:
        with np.load(path, allow_pickle=False) as file:
            numbers = sorted(int(k.removeprefix("error_")) for k in file.files if k.startswith("error_"))
            for number in numbers:
                for name in ("error", "features", "ftick"):
                    merged[f"{name}_{count}"] = file[f"{name}_{number}"]
                count += 1
    np.savez(out, **merged)
