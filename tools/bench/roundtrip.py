"""`ratchet bench roundtrip`: full-size inference in every tick of a whole robot, through gRPC and back."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Self

import click
import numpy as np
import numpy.typing as npt

from policies.config import Backbone
from runtime.policy_log import ANSWER, answer_reader
from tools.bench.act_bundle import Served, export_untrained
from tools.bench.common import quantile, show
from tools.bench.loads import LOADS, Driver, Span
from tools.bench.watching import Seen, Watch, cpu_s, robot_processes, scheduling, stolen_s
from tools.console import say
from tools.options import PATH, FiniteRange, json_flag
from tools.progress import bar
from tools.sim import SimRobot, SimSettings, start_sim

CAMERA_SIZE = (320, 240)
ENSEMBLE = 0.01
BUDGET = {"round_trip_ms_p99": 33.0}
DEFINITIONS = {
    "round_trip_ms": "in the robot's process, from handing over an observation to the checked answer",
    "exec_ms": "of it, the server's inference; queue_ms: the server's wait before it",
    "fresh_share": "ticks that played a chunk computed from an observation no other tick had played before",
    "missed": "deadlines of the 30 Hz grid at which no tick ran",
    "answer_age_ticks": "from the tick that was observed to the first tick that played its chunk",
}
EXAMPLES = """
\b
Examples:
  ratchet bench roundtrip --json
  ratchet bench roundtrip --seconds 20 --threads 1 --bundles out/bench
"""


@click.command(epilog=EXAMPLES)
@click.option("--seconds", type=FiniteRange(2.0, 86_400.0), default=60.0, show_default=True)
@click.option("--threads", type=click.IntRange(1, 64), default=2, show_default=True, help="Of one inference.")
@click.option(
    "--priority", type=click.IntRange(0, 9), default=5, show_default=True, help="Of the policy server."
)
@click.option(
    "--backbone",
    type=click.Choice(["resnet18", "efficientnet_lite0"]),
    default="resnet18",
    show_default=True,
    help="Of the full-size policy; the published one has a ResNet-18.",
)
@click.option("--bundles", type=PATH, help="Keep the exported policy here, and use it if it is.")
@click.option("--dir", "folder", type=PATH, help="Keep the run and its logs here.")
@json_flag
def command(
    seconds: float,
    threads: int,
    priority: int,
    backbone: Backbone,
    bundles: Path | None,
    folder: Path | None,
    as_json: bool,
) -> None:
    """The published ACT (51.6 M, chunk 100), int8, two 320x240 cameras, asked in every tick while an episode
    is recorded: real bus processes, service and policy server; only arm and cameras are simulated.

    The policy server gets a real-time priority below the control loop's; --priority 0 shows what becomes of
    it without one.
    """
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ratchet-bench-")))
        say("exporting the policy, unless it is there")
        served = bundle(bundles or folder, backbone)
        figures = asyncio.run(measure(folder, served, seconds, (threads, priority)))
        show({"backbone": backbone, **figures}, as_json)


def bundle(root: Path, backbone: Backbone) -> Served:
    """The full-size policy, exported below ``root`` or found there."""
    from policies.config import ACTConfig, CameraShape, act_full

    width, height = CAMERA_SIZE
    cameras = tuple(CameraShape(name=name, height=height, width=width) for name in ("front", "wrist"))
    config = ACTConfig.model_validate({**act_full(cameras).model_dump(), "backbone": backbone})
    suffix = "" if backbone == "resnet18" else f"-{backbone}"
    return export_untrained(root / f"act-full-{width}x{height}{suffix}", config)


class Answers:
    """Reads along the answers of a running service; use as a context, then take ``between``."""

    def __init__(self, run_dir: Path) -> None:
        self._ring = answer_reader(run_dir)
        self._index = self._ring.head - 1
        self._rows: list[npt.NDArray[Any]] = [np.zeros(0, ANSWER)]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def between(self, begin_ns: int, end_ns: int) -> npt.NDArray[Any]:
        """Answers to requests begun between two times. Call it after the context was left."""
        rows = np.concatenate(self._rows)
        return rows[(rows["begun_ns"] >= begin_ns) & (rows["begun_ns"] < end_ns)]

    def _run(self) -> None:
        while not self._stop.wait(0.25):
            self._look()
        self._look()

    def _look(self) -> None:
        first, rows = self._ring.since(self._index)
        self._index = first + len(rows) - 1
        self._rows.append(rows)


async def measure(folder: Path, served: Served, seconds: float, effort: tuple[int, int]) -> dict[str, Any]:
    """Run the robot with ``served`` below ``folder`` for ``seconds``; everything that is printed.

    ``effort`` is the threads of an inference and their real-time priority.
    """
    say("starting bench, policy server and robot")
    settings = SimSettings(
        bundle=served.bundle,
        trust=served.trust,
        backend="onnx-int8",
        threads=effort[0],
        priority=effort[1],
        size=CAMERA_SIZE,
        name="timing",
        ensemble=ENSEMBLE,
        prerendered=True,
    )
    sim = await asyncio.to_thread(start_sim, folder / "run", settings)
    load = next(load for load in LOADS if load.name == "policy")
    with sim:
        async with sim.client() as robot, contextlib.AsyncExitStack() as leases:
            driver = Driver(sim, robot, leases)
            await driver.take_control()
            processes = robot_processes(sim.process.process.pid)
            run_dir = sim.paths.run_dir / "run"
            with (
                Watch(run_dir) as watch,
                Answers(run_dir) as answers,
                bar("policy", round(seconds)) as update,
            ):
                before = {name: cpu_s(pid) for name, pid in processes.items()}
                stolen, began = stolen_s(), time.monotonic()
                span = await driver.run(load, seconds, lambda done: update(round(done)))
                took = time.monotonic() - began
                used = {name: cpu_s(pid) - before[name] for name, pid in processes.items()}
                stolen = stolen_s() - stolen
                threads_seen = scheduling(processes)
            await robot.stop("the benchmark is done")
    figures = report(
        watch.seen(span.begin_ns, span.end_ns), answers.between(span.begin_ns, span.end_ns), span
    )
    return {
        **figures,
        "cpu_percent": {name: round(100 * value / took, 1) for name, value in used.items()},
        "stolen_percent": round(100 * stolen / took, 2),
        "threads": threads_seen,
        "inference_threads": effort[0],
        "priority": effort[1],
        "travel": _travel(sim),
        "definitions": DEFINITIONS,
    }


def report(seen: Seen, answers: npt.NDArray[Any], span: Span) -> dict[str, Any]:
    """The figures of one run."""
    round_trips = ((answers["done_ns"] - answers["begun_ns"]) / 1e6).tolist()
    played = seen.ticks["chunk_tick"]
    fresh = np.flatnonzero(np.diff(played, prepend=-1) > 0)
    ages = (seen.ticks["tick"][fresh] - played[fresh]).tolist()
    p99 = quantile(round_trips, 99)
    return {
        "seconds": round((span.end_ns - span.begin_ns) / 1e9, 1),
        "cameras": f"2 x {CAMERA_SIZE[0]}x{CAMERA_SIZE[1]}",
        "ticks": len(seen.ticks),
        "missed": int(seen.ticks["skipped"].sum()),
        "requests": len(answers),
        "round_trip_ms_p50": quantile(round_trips, 50),
        "round_trip_ms_p99": p99,
        "round_trip_ms_max": round(max(round_trips, default=0.0), 4),
        "exec_ms_p50": quantile(answers["exec_ms"].tolist(), 50),
        "exec_ms_p99": quantile(answers["exec_ms"].tolist(), 99),
        "queue_ms_p50": quantile(answers["queue_ms"].tolist(), 50),
        "fresh_share": round(len(fresh) / max(len(played), 1), 4),
        "answer_age_ticks_p50": quantile(ages, 50),
        "answer_age_ticks_p99": quantile(ages, 99),
        "shared_share": round(float(answers["shared"].mean()), 4) if len(answers) else 0.0,
        "interruptions": span.interruptions,
        "budget": BUDGET,
        "held": bool(len(answers)) and p99 < BUDGET["round_trip_ms_p99"],
    }


def _travel(sim: SimRobot) -> str:
    """What the robot's log says of how pictures travel."""
    lines = [line for line in sim.log.read_text(errors="replace").split("\n") if "frame_lane." in line]
    return lines[-1][-200:] if lines else "in the message"
