"""`ratchet bench latency`: closed-loop success and smoothness when the policy is far away."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from tools.bench.common import show
from tools.bench.latency_part import BATCH, Condition, Work
from tools.console import say
from tools.errors import UsageError
from tools.options import PATH, json_flag
from tools.progress import bar

LATENCIES_MS = (0, 100, 200, 300)
LOST = 0.01
_RATIO = 1.5
BUDGET = {"success": "within the Wilson interval of 0 ms", "seam_to_interior": _RATIO}
DEFAULT = Path("out/demo/learner")
_FIRST_SEED = 900_000
_TICK_MS = 1000 / 30
_TIMEOUT_TICKS = 30
_ROOT = Path(__file__).resolve().parents[2]
DEFINITIONS = {
    "latency_ms": "added between a request and its answer, in whole ticks of 33.3 ms, rounded up",
    "lost": "this share of requests is never answered; under `ours.lost` and `naive.lost` at every latency",
    "seam_jerk": "root mean square of the goals' jerk, rad/s³, where chunks change, the blend included",
    "interior_jerk": "the same at all other ticks; `tools/bench/latency_seams.py` says exactly what counts",
    "paired": "same seeds under every condition: episodes won and lost against the same client at 0 ms",
    "ensemble": "asks in every tick and averages, as ACT does; at 0 ms only, judged against ours at 0 ms; "
    "each tick is a seam, so there is no interior to speak of, and no ratio where there is none",
    "naive": "plays a chunk from its first row when it comes, stands still while it asks, blends nothing",
}
EXAMPLES = """
\b
Examples:
  ratchet bench latency --json                      # out/demo's bundle, 200 episodes a condition
  ratchet bench latency --bundle out/bundle --trust out/keys --episodes 50
"""


@click.command(epilog=EXAMPLES)
@click.option("--episodes", type=click.IntRange(1, 10_000), default=200, show_default=True,
              help="Of each condition, on the same seeds.")  # fmt: skip
@click.option("--bundle", type=PATH, help="A trained bundle [default: the champion of out/demo].")
@click.option("--trust", type=PATH, help="Directory of trusted public keys [default: out/demo/keys].")
@click.option("--backend", type=click.Choice(["onnx", "onnx-int8"]), default="onnx", show_default=True)
@click.option("--workers", type=click.IntRange(1, 64), default=2, show_default=True)
@click.option("--dir", "folder", type=PATH, default=Path("out/latency"), show_default=True,
              help="What was measured is kept here: run again after an interruption to go on.")  # fmt: skip
@json_flag
def command(
    episodes: int,
    bundle: Path | None,
    trust: Path | None,
    backend: str,
    workers: int,
    folder: Path,
    as_json: bool,
) -> None:
    """Rollouts in lockstep with added latency and lost requests, ours beside a naive client and an ensemble.

    The live loop's own controller and chunk player on the simulated bench: no clock is involved, a slow
    machine only takes longer. Two to four minutes a thousand episodes and core.
    """
    bundle, trust = bundle or _champion(), trust or Path("out/demo/keys")
    conditions = [
        Condition(client, math.ceil(ms / _TICK_MS - 1e-9), lost, _TIMEOUT_TICKS)
        for client in ("ours", "naive")
        for lost in (0.0, LOST)
        for ms in LATENCIES_MS
    ]
    # For a policy that answers within the tick; one further away is no ensemble (runtime/ensemble.py).
    conditions += [Condition("ensemble", 0, lost, _TIMEOUT_TICKS) for lost in (0.0, LOST)]
    results = folder / f"{_fingerprint(bundle, backend)}.jsonl"
    seeds = range(_FIRST_SEED, _FIRST_SEED + episodes)
    began = time.monotonic()
    _measure(Work(str(bundle), str(trust), backend, str(results), ()), conditions, seeds, workers)
    rows = [row for row in _read(results).values() if row["seed"] in seeds]
    figures = report(rows, conditions)
    show({**figures, "bundle": str(bundle), "backend": backend, "seconds": time.monotonic() - began}, as_json)


def report(rows: Sequence[Mapping[str, Any]], conditions: Sequence[Condition]) -> dict[str, Any]:
    """Everything that is printed, from one row an episode and condition."""
    found = {c: {row["seed"]: row for row in rows if row["condition"] == c.name} for c in conditions}
    out: dict[str, Any] = {}
    for client in dict.fromkeys(c.client for c in conditions):
        mine = [c for c in conditions if c.client == client]
        base = found[conditions[0] if client == "ensemble" else mine[0]]
        out[client] = {
            kind: {f"{_ms(c)}ms": _figures(found[c], base) for c in mine if (c.lost > 0) == lossy}
            for kind, lossy in (("added", False), ("lost", True))
        }
    ours = [figures for kind in out["ours"].values() for figures in kind.values()]
    held = {
        "success": all(figures["within"] for figures in ours),
        "seam_to_interior": all((f["seam_to_interior"] or 0.0) <= _RATIO for f in ours),
    }
    return {
        "episodes": len(found[conditions[0]]),
        "lost_share": LOST,
        **out,
        "budget": BUDGET,
        "held": {**held, "all": all(held.values())},
        "definitions": DEFINITIONS,
    }


def _figures(rows: Mapping[int, Mapping[str, Any]], base: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """One condition: success with its interval, against the base condition, and the jerk."""
    from learner.intervals import wilson

    n, won = len(rows), sum(row["success"] for row in rows.values())
    low, high = wilson(won, n)
    least = wilson(sum(row["success"] for row in base.values()), len(base))[0]
    seam, interior = _rms(rows, "seam"), _rms(rows, "interior")
    both = rows.keys() & base.keys()
    return {
        "success": round(won / n, 4),
        "interval": [round(low, 4), round(high, 4)],
        "within": won / n >= least,
        "paired_won": sum(rows[s]["success"] and not base[s]["success"] for s in both),
        "paired_lost": sum(base[s]["success"] and not rows[s]["success"] for s in both),
        "seconds_mean": round(sum(row["ticks"] for row in rows.values()) / n * _TICK_MS / 1e3, 2),
        "requests_mean": round(sum(row["asked"] for row in rows.values()) / n, 1),
        "seam_jerk": round(seam, 1),
        "interior_jerk": round(interior, 1),
        "seam_to_interior": round(seam / interior, 3) if interior else None,
    }


def _rms(rows: Mapping[int, Mapping[str, Any]], where: str) -> float:
    ticks = sum(row[f"{where}_ticks"] for row in rows.values())
    return math.sqrt(sum(row[where] for row in rows.values()) / ticks) if ticks else 0.0


def _ms(condition: Condition) -> int:
    return next(ms for ms in LATENCIES_MS if math.ceil(ms / _TICK_MS - 1e-9) == condition.delay_ticks)


def _measure(work: Work, conditions: Sequence[Condition], seeds: range, workers: int) -> None:
    """Run what is not there yet. Raises UsageError with a worker's last line."""
    results = Path(work.results)
    results.parent.mkdir(parents=True, exist_ok=True)
    done = _read(results)
    jobs = []
    for condition in conditions:
        left = [seed for seed in seeds if (condition.name, seed) not in done]
        jobs += [(condition, tuple(left[at : at + BATCH])) for at in range(0, len(left), BATCH)]
    total = len(conditions) * len(seeds)
    processes: list[subprocess.Popen[str]] = []
    try:
        for number in range(min(workers, len(jobs))):
            path = results.with_suffix(f".{number}.json")
            part = Work(work.bundle, work.trust, work.backend, work.results, tuple(jobs[number::workers]))
            path.write_text(json.dumps(asdict(part)))
            command_line = [sys.executable, "-m", "tools.bench.latency_part", str(path.resolve())]
            processes.append(
                subprocess.Popen(command_line, cwd=Path.cwd(), stderr=subprocess.PIPE, text=True)
            )
        with bar("latency", total) as update:
            while any(process.poll() is None for process in processes):
                time.sleep(0.5)
                update(len(_read(results)))
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
    for process in processes:
        if process.returncode and process.stderr is not None:
            raise UsageError(
                process.stderr.read().strip().rpartition("\n")[2] or "a worker died without a word"
            )


def _read(results: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Episodes by condition and seed; a line cut off by an interruption is as if never written."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    lines = results.read_text().split("\n") if results.exists() else []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows[row["condition"], row["seed"]] = row
    return rows


def _fingerprint(bundle: Path, backend: str) -> str:
    """What the figures depend on: the bundle, and the code between an answer and the motors."""
    digest = hashlib.sha256(backend.encode())
    try:
        digest.update((bundle / "manifest.json").read_bytes())
    except OSError as error:
        raise UsageError(f"{bundle} is no bundle ({error.strerror}); give one with --bundle") from None
    for path in sorted([*(_ROOT / "runtime").glob("*.py"), *(_ROOT / "hal" / "bench").glob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _champion() -> Path:
    """The demo's last candidate that was promoted, else its first policy."""
    candidates = sorted(DEFAULT.glob("rounds/*/candidate/manifest.json"))
    path = candidates[-1].parent if candidates else DEFAULT / "first"
    if not path.is_dir():
        raise UsageError("out/demo holds no trained policy; run `make demo`, or give --bundle and --trust")
    say(f"bundle {path}")
    return path
