"""One process of `ratchet bench contact`: HOURS TRIALS FIRST STRIDE; progress and result as JSON lines."""

from __future__ import annotations

import json
import sys
from typing import Any

from hal.types import JOINTS
from runtime.servo import ServoConfig
from tools.bench.contact_motion import Bench, Quiet, run_stretch
from tools.bench.contact_trials import Obstacle, Outcome, propose, run, without_stop

_TELL_EVERY = 20
_SEEDS_A_TRIAL = 20  # some joints are hard to block by chance


def ordinary_motion(hours: float, first: int, stride: int, told: int = 0) -> Quiet:
    """Stretches of seeds ``first``, ``first + stride`` … until they last ``hours``."""
    bench, quiet = Bench(ServoConfig()), Quiet()
    seed = first
    while quiet.hours < hours:
        run_stretch(bench, seed, quiet)
        seed += stride
        if told and quiet.stretches % told == 0:
            _tell({"done": quiet.hours * 3600.0})
    return quiet


def against_blocks(trials: int, first: int, stride: int) -> list[dict[str, Any]]:
    """That many trials, as rows; fewer when chance gives none for most seeds."""
    servo = ServoConfig(ramp_s=0.0)
    bench, free = Bench(servo), Bench(without_stop(servo))
    rows: list[dict[str, Any]] = []
    for seed in range(first, first + stride * trials * _SEEDS_A_TRIAL, stride):
        if len(rows) >= trials:
            break
        trial = propose(free, seed)
        if trial is not None:
            rows.append(row(trial, run(bench, trial)))
    return rows


def row(trial: Obstacle, outcome: Outcome) -> dict[str, Any]:
    """A trial and its outcome as they are reported."""
    return {
        "seed": trial.seed,
        "joint": JOINTS[trial.joint],
        "speed": round(trial.speed, 3),
        "stop_ms": outcome.stop_ms,
        "still_ms": outcome.still_ms,
        "early": outcome.stop is not None and outcome.touch < 0,
        "reported": "none" if outcome.stop is None else JOINTS[outcome.joint],
        "residual": round(outcome.residual, 3),
    }


def _tell(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main(hours: str, trials: str, first: str, stride: str) -> None:
    """Run both and print the result."""
    quiet = ordinary_motion(float(hours), int(first), int(stride), _TELL_EVERY)
    rows = against_blocks(int(trials), int(first), int(stride))
    _tell({"hours": quiet.hours, "stretches": quiet.stretches, "grasps": quiet.grasps, "stops": quiet.stops,
           "trials": rows})  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
