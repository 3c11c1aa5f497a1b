"""`ratchet bench inference`: one ACT chunk, from pixels to joint goals, in four forms side by side."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from tools.bench import backbones
from tools.bench.common import quantile, show
from tools.console import say
from tools.errors import UsageError
from tools.options import FiniteRange, json_flag

SIZES = "640x480,320x240,128x128"
BUDGET = 5.0
BUDGETED = ("640x480", "320x240")
FORMS = ("eager", "compile", "onnx_fp32", "onnx_int8")
LEAST_ROUNDS = 10
PAUSE_S = 0.005
"""Between runs, as between a server's requests: the threads of the form before have stopped spinning."""

EXAMPLES = """
\b
Examples:
  ratchet bench inference
  ratchet bench inference --sizes 320x240 --threads 1 --json
"""


@click.command(epilog=EXAMPLES)
@click.option("--sizes", default=SIZES, show_default=True, help="WxH of the two cameras, several by comma.")
@click.option("--threads", type=click.IntRange(1, 64), help="Of every form [default: the processors here].")
@click.option("--seconds", type=FiniteRange(0.1, 600), default=15.0, show_default=True, help="Each size.")
@click.option("--spinning", is_flag=True, help="Let ONNX Runtime's threads burn their core while waiting.")
@click.option("--no-compile", is_flag=True, help="Leave out torch.compile, which takes most of the time.")
@click.option("--no-backbones", is_flag=True, help="Leave out the second backbone (see bench backbones).")
@json_flag
def command(
    sizes: str,
    threads: int | None,
    seconds: float,
    spinning: bool,
    no_compile: bool,
    no_backbones: bool,
    as_json: bool,
) -> None:
    """The published ACT (51.6 M), untrained, two cameras, batch 1: eager, compiled, ONNX float32 and int8.

    Each form takes uint8 frames and gives joint goals; eager pays its own conversion, as LeRobot's users
    do. All are run in turn, the order turning too; so are int8 on one thread, and in ONNX Runtime where
    another engine is faster, with and without spinning. Errors are against float64, over four
    observations, in standard deviations of the action: the mean, and the largest beside it.
    Last, the same over EfficientNet-Lite0, 640x480.
    """
    from policies.engine import providers, skipped

    count = threads or len(os.sched_getaffinity(0))
    with TemporaryDirectory(prefix="ratchet-bench-inference-") as folder:
        rows = {
            size: _size(_parsed(size), size, count, seconds, spinning, not no_compile, Path(folder))
            for size in sizes.split(",")
        }
    others = {} if no_backbones else backbones.measure(seconds, count, spinning, ("efficientnet_lite0",))
    held = [row["int8_speedup"]["held"] for row in rows.values() if row["int8_speedup"]["held"] is not None]
    held += [row["int8_hz"]["held"] for row in others.values()]
    figures = {
        "model": "ACT as published, 51.6 M values, chunk 100, two cameras, batch 1, untrained",
        "threads": count,
        "spinning": spinning,
        "providers": {
            "fp32": [name for name, _ in providers("fp32")],
            "int8": [name for name, _ in providers("int8")],
            "skipped": skipped(),
        },
        "error_unit": "mean absolute error against float64, in standard deviations of the action",
        "sizes": rows,
        "backbones": others,
        "held": all(held),
    }
    show(figures, as_json)


def _parsed(size: str) -> tuple[int, int]:
    """(height, width) of "WxH". Raises UsageError."""
    parts = size.split("x")
    if len(parts) != 2 or not all(part.isdigit() and 32 <= int(part) <= 4096 for part in parts):
        raise UsageError(f"--sizes: {size!r} is not a WxH of 32 to 4096 pixels, such as 640x480")
    return int(parts[1]), int(parts[0])


def _size(
    shape: tuple[int, int], name: str, threads: int, seconds: float, spinning: bool, compile: bool, root: Path
) -> dict[str, Any]:
    from tools.bench.inference_forms import prepare

    say(f"{name}: exporting and quantising")
    made = prepare(shape, threads, spinning, compile, root)
    say(f"{name}: measuring")
    times = _rounds({**made.run, **made.settings}, seconds)
    row: dict[str, Any] = {"rounds": len(times["eager"])}
    for form in FORMS:
        row[f"{form}_ms"] = _spread(times[form]) if form in times else None
    row["int8_settings_ms"] = {form: _spread(times[form]) for form in made.settings}
    row["error"] = made.errors
    speedup = quantile(times["eager"], 50) / quantile(times["onnx_int8"], 50)
    budget = BUDGET if name in BUDGETED else None
    row["int8_speedup"] = {
        "reached": round(speedup, 2),
        "budget": budget,
        "held": None if budget is None else speedup >= budget,
    }
    row["int8_scheme"] = made.scheme
    row["int8_engine"] = made.engine
    if made.left_out:
        row["left_out"] = made.left_out
    return row


def _spread(times: list[float]) -> dict[str, float]:
    return {"p50": quantile(times, 50), "p99": quantile(times, 99)}


def _rounds(run: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Milliseconds of every form once a round, each round beginning with another, after three to warm up."""
    forms = list(run)
    times: dict[str, list[float]] = {form: [] for form in forms}
    for form in forms:
        for _ in range(3):
            run[form]()
    until = time.perf_counter() + seconds
    turn = 0
    while turn < LEAST_ROUNDS or time.perf_counter() < until:
        for i in range(len(forms)):
            form = forms[(turn + i) % len(forms)]
            time.sleep(PAUSE_S)
            begun = time.perf_counter()
            run[form]()
            times[form].append((time.perf_counter() - begun) * 1e3)
        turn += 1
    return times
