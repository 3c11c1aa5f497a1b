"""The report of a run that stopped because of a batch: which episodes and steps were in it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from learner.checkpoint import write_atomic
from learner.errors import DivergedError
from learner.watch import Alarm, listed

REPORT = "diverged.json"


def diverged(
    alarm: Alarm,
    step: int,
    samples: Sequence[tuple[str, int]],
    errors: Sequence[float] | None,
    recent: Sequence[float],
    folder: Path | None,
) -> DivergedError:
    """The error for ``alarm`` at optimiser step ``step``, naming the batch, the worst sample first.

    ``samples`` are (episode, step within it); ``errors`` the mean absolute error of each (normalised),
    where they are known; ``recent`` the losses before. With ``folder`` all of that goes into its
    ``diverged.json``.
    """
    known = [math.nan] * len(samples) if errors is None else list(errors)
    ranked = sorted(zip(samples, known, strict=True), key=lambda pair: -_badness(pair[1]))
    where = ""
    if folder is not None:
        rows = [{"episode": e, "step": at, "error": error} for (e, at), error in ranked]
        report = {
            "step": step,
            "reason": alarm.reason,
            "median": alarm.median,
            "limit": alarm.limit,
            "batch": [{**row, "error": None} if errors is None else row for row in rows],
            "losses_before": list(recent),
        }
        path = folder / REPORT
        # As JSON has no NaN, numbers that are none are written as words.
        write_atomic(path, json.dumps(_finite(report), indent=1).encode())
        where = f" (all of it: {path})"
    named = listed([sample for sample, _ in ranked])
    return DivergedError(
        f"{alarm.reason} at step {step}, batch of {named}{where}",
        "look at these episodes; leave them out, lower lr or raise watch.factor; the checkpoint is intact",
    )


def _badness(error: float) -> float:
    return math.inf if math.isnan(error) else error


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
