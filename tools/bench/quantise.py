"""`ratchet bench quantise`: what int8 costs in accuracy, on real recordings and in closed loop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from tools.bench.common import show
from tools.console import say
from tools.errors import UsageError
from tools.options import PATH, json_flag

ROOT = Path(__file__).parents[2]
DATASET = ROOT.parent / "shared" / "fixtures" / "cr5_pick_v21"
INDEX = "CAST(provenance->>'episode_index' AS INT)"
LAST_TRAINING = 15
GROWTH_BUDGET = 0.02
MARGIN = 0.05
"""Not worse: the lower end of the 95 % interval of int8 − fp32 is above minus this much success."""

EXAMPLES = """
\b
Examples:
  ratchet bench quantise --work out/quantise                       # trains once, then reuses
  ratchet bench quantise --demo out/demo/learner/first --demo-store out/demo/episodes --json
"""


@click.command(epilog=EXAMPLES)
@click.option("--dataset", type=PATH, default=DATASET, show_default="the real fixture", help="LeRobot v2.1.")
@click.option("--steps", type=click.IntRange(1), default=400, show_default=True, help="Training on it.")
@click.option("--work", type=PATH, help="Keeps the imported episodes and the trained bundle.")
@click.option("--demo", type=PATH, help="A bundle trained in simulation, for the closed loop.")
@click.option("--demo-store", type=PATH, help="The episodes it was trained on, to calibrate int8 with.")
@click.option("--trust", type=PATH, help="Trusted keys of the demo's bundle.")
@click.option("--episodes", type=click.IntRange(2), default=200, show_default=True, help="Pairs to roll out.")
@click.option("--first-seed", type=click.IntRange(0), default=900_000, show_default=True)
@click.option("--workers", type=click.IntRange(1, 64), default=2, show_default=True)
@json_flag
def command(
    dataset: Path,
    steps: int,
    work: Path | None,
    demo: Path | None,
    demo_store: Path | None,
    trust: Path | None,
    episodes: int,
    first_seed: int,
    workers: int,
    as_json: bool,
) -> None:
    """Held-out action error and closed-loop success of a bundle's int8 form beside its float32 form.

    Offline: trains a small ACT on the first 16 of the real recordings, then predicts the other four
    with both forms. Closed loop: both forms of one simulated policy, int8 made anew, on the same seeds.
    """
    from tools.bench.quantise_loop import closed_loop

    for given in (demo, demo_store, trust):
        if given is not None and not given.is_dir():
            raise UsageError(f"no folder {given}; `make demo` makes a bundle and its episodes")
    if demo is None and not dataset.is_dir():
        raise UsageError(f"no LeRobot dataset at {dataset}; give --dataset, or --demo and --demo-store")
    figures: dict[str, Any] = {}
    with TemporaryDirectory(prefix="ratchet-bench-quantise-") as scratch:
        place = work or Path(scratch)
        place.mkdir(parents=True, exist_ok=True)
        if dataset.is_dir():
            figures["offline"] = offline(dataset, place, steps)
        else:
            figures["offline_left_out"] = f"no LeRobot dataset at {dataset}"
        if demo is not None and demo_store is not None:
            seeds = list(range(first_seed, first_seed + episodes))
            figures["closed_loop"] = closed_loop(
                demo, demo_store, trust, Path(scratch), seeds, workers, MARGIN
            )
        else:
            figures["closed_loop_left_out"] = (
                "give --demo BUNDLE and --demo-store STORE, as `make demo` makes"
            )
    show(figures, as_json)


def offline(dataset: Path, work: Path, steps: int) -> dict[str, Any]:
    """Import and train below ``work`` unless that is done; predict held-out episodes with both forms."""
    from episodes.store import EpisodeStore
    from learner.loading import load_dataset
    from learner.offline import evaluate_offline
    from policies.bundle import Bundle
    from policies.fastest import open_fastest
    from policies.keys import TrustStore
    from tools.offline import data_config
    from tools.training import training_folder

    store, bundle, keys = work / "store", work / "banana", work / "keys"
    if not store.exists():
        _ratchet("episodes", "import", dataset, "--store", store, "--image-size", "96x128")
    if not bundle.exists():
        _ratchet(
            "train", "--store", store, "--where", f"{INDEX} <= {LAST_TRAINING}", "--out", bundle,
            "--keys", keys, "--no-register", "--name", "banana", "--steps", steps, "--set", "batch=16",
            "--set", "jitter.shift=6", "--set", "data.max_gap_ticks=3",
            *(["--resume"] if training_folder(bundle).exists() else []),
        )  # fmt: skip
    opened = Bundle.open(bundle, TrustStore.load(keys))
    with EpisodeStore.open(store, create=False, mode="r") as episodes:
        chosen = episodes.select(f"{INDEX} > {LAST_TRAINING}")
        held_out = load_dataset(episodes, chosen, data_config(opened.manifest))
        errors = {}
        for precision in ("fp32", "int8"):
            say(f"predicting held-out episodes with {precision}")
            report = evaluate_offline(open_fastest(opened, precision), held_out)
            errors[precision] = {"mean": report.policy.mean, "scaled": report.scaled["policy"]}
    growth = {name: errors["int8"][name] / errors["fp32"][name] - 1.0 for name in ("mean", "scaled")}
    training = opened.manifest.training.get("config")
    return {
        "episodes": len(chosen),
        "predictions": report.samples,
        "steps": training.get("steps") if isinstance(training, dict) else None,
        "l1_fp32": round(errors["fp32"]["mean"], 6),
        "l1_int8": round(errors["int8"]["mean"], 6),
        "growth": round(growth["mean"], 5),
        "growth_in_std": round(growth["scaled"], 5),
        "int8_scheme": opened.manifest.parity.int8_scheme,
        "budget": GROWTH_BUDGET,
        "held": max(growth.values()) < GROWTH_BUDGET,
    }


def _ratchet(*arguments: object) -> None:
    """Another command of ours, its output on stderr. Raises UsageError with its last words."""
    command = [sys.executable, "-m", "tools.cli", *map(str, arguments)]
    say(" ".join(str(a) for a in arguments[:2]))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip() or "it printed nothing").splitlines()[-1]
        raise UsageError(f"ratchet {arguments[0]} failed: {last}")
