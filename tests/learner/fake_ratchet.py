"""Stands in for ``ratchet evaluate``: success by bundle, as a table in a JSON file says.

The table maps manifest "training.kind" (and "base" for a bundle without one) to a success rate in
the gap; outside it everything succeeds nine times out of ten, the same seeds for everybody.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np


def rate_of(bundle: Path, table: dict[str, float]) -> float:
    manifest = json.loads((bundle / "manifest.json").read_text())
    return table[manifest["training"].get("kind", "base")]


def run(bundle: Path, seeds: range, rate: float) -> list[dict[str, object]]:
    out = []
    for seed in seeds:
        luck, easy = np.random.default_rng(seed).random(2)
        place = "gap" if seed % 2 else "covered"
        success = bool(luck < rate) if place == "gap" else bool(easy < 0.9)
        out.append({"seed": seed, "slice": place, "success": success, "ticks": 100, "flags": []})
    return out


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("verb")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--trust", type=Path, required=True)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--seeds", required=True)
    parser.add_argument("--region", default="full")
    parser.add_argument("--against", type=Path)
    parser.add_argument("--signals", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    table = json.loads(args.table.read_text())
    with args.table.with_suffix(".calls").open("a") as calls:
        calls.write(f"{args.seeds} {args.against is not None} {args.signals is not None}\n")
    if table.get("broken"):
        sys.stderr.write("evaluate: no bundle there; check the path\n")
        return 3
    first, last = (int(part) for part in args.seeds.split(":"))
    seeds = range(first, last)
    episodes = run(args.bundle, seeds, rate_of(args.bundle, table))
    result = {
        "bundle": "x",
        "episodes": episodes,
        "against": run(args.against, seeds, rate_of(args.against, table)) if args.against else None,
        "success_rate": sum(bool(e["success"]) for e in episodes) / len(episodes),
        "interval": [0.0, 1.0],
        "latency_ms_p99": 5.0,
    }
    if args.signals:
        rng = np.random.default_rng(0)
        arrays = {}
        for i in range(60):
            ticks = np.arange(0, 96, 16)
            arrays[f"error_{i}"] = np.column_stack([ticks, rng.gamma(4.0, 0.01, len(ticks))])
            arrays[f"features_{i}"] = rng.normal(size=(len(ticks), 32)).astype(np.float32)
            arrays[f"ftick_{i}"] = ticks
        np.savez(args.signals, **arrays)
    args.json.write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
