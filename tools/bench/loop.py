"""`ratchet bench loop`: the robot's side as it runs, on the bench, under four loads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from tools.bench.act_bundle import CAMERA_SIZE, DESCRIPTION, Served, export
from tools.bench.common import show
from tools.bench.loads import LOADS, Driver, Load, Span, learner, learner_steps
from tools.bench.loop_figures import DEFINITIONS, stalls, timing, without_stalls
from tools.bench.peers import KINDS, Peer
from tools.bench.watching import Watch, cpu_s, robot_processes, scheduling, stolen_s
from tools.console import say
from tools.options import PATH, FiniteRange, json_flag
from tools.progress import bar
from tools.sim import SimRobot, SimSettings, start_sim

BUDGET = {"missed": 0, "lateness_ms_p999": 3.0}
EXAMPLES = """
\b
Examples:
  ratchet bench loop --seconds 600 --json > loop.json     # ten minutes a load, the budget's own length
  ratchet bench loop --seconds 20
"""


@click.command(epilog=EXAMPLES)
@click.option("--seconds", type=FiniteRange(2.0, 86_400.0), default=60.0, show_default=True,
              help="Of each of the four loads.")  # fmt: skip
@click.option("--load", "loads", type=click.Choice([load.name for load in LOADS]), multiple=True,
              help="Only this load (repeatable); learning needs recording before it.")  # fmt: skip
@click.option("--dir", "folder", type=PATH, help="Keep the run, its logs and the policy here.")
@json_flag
def command(seconds: float, loads: tuple[str, ...], folder: Path | None, as_json: bool) -> None:
    """Time the control loop of a whole robot: idle, recording, with a policy, and with the learner at work.

    Two 640x480 cameras, real bus processes, the service with its recorder, a policy server; only arm
    and cameras are simulated.
    """
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ratchet-bench-")))
        chosen = [load for load in LOADS if not loads or load.name in loads]
        figures: dict[str, Any] = {}
        try:
            asyncio.run(measure(folder, chosen, seconds, figures))
        finally:  # of forty minutes, what was measured before an interruption counts
            if figures:
                show(report(figures, [load.name for load in chosen], seconds), as_json)


async def measure(folder: Path, loads: Sequence[Load], seconds: float, figures: dict[str, Any]) -> None:
    """Run the robot below ``folder`` through ``loads``; puts each one's figures into ``figures``."""
    say("exporting the policy")
    served = await asyncio.to_thread(export, folder / "policy")
    say("starting bench, policy server and robot")
    settings = SimSettings(
        bundle=served.bundle, trust=served.trust, size=CAMERA_SIZE, name="timing", prerendered=True
    )
    sim = await asyncio.to_thread(start_sim, folder / "run", settings)
    with sim:
        async with sim.client() as robot, contextlib.AsyncExitStack() as leases:
            driver = Driver(sim, robot, leases)
            await driver.take_control()
            for load in loads:
                figures[load.name] = await _load(sim, driver, served, load, seconds)
            await robot.stop("the benchmark is done")


async def _load(sim: SimRobot, driver: Driver, served: Served, load: Load, seconds: float) -> dict[str, Any]:
    """One load with the peers beside it."""
    processes = robot_processes(sim.process.process.pid)
    with contextlib.ExitStack() as stack:
        learning = None
        if load.learns:
            say("starting the learner")
            learning = await asyncio.to_thread(stack.enter_context, learner(sim, served))
            processes["learner"] = learning.process.pid
        watch = stack.enter_context(Watch(sim.paths.run_dir / "run"))
        update = stack.enter_context(bar(load.name, round(seconds)))
        peers = {kind: Peer(kind) for kind in KINDS}
        floors = {f"cpu{cpu}": Peer(str(cpu), "tools.bench.floor") for cpu in sorted(os.sched_getaffinity(0))}
        for peer in (*peers.values(), *floors.values()):
            stack.callback(peer.stop)
        before, stolen, began = {n: cpu_s(p) for n, p in processes.items()}, stolen_s(), time.monotonic()
        steps = learner_steps(learning.log) if learning else 0
        span = await driver.run(load, seconds, lambda done: update(round(done)))
        took = time.monotonic() - began
        cpu = {n: round(100 * (cpu_s(p) - before[n]) / took, 1) for n, p in processes.items()}
        extra: dict[str, Any] = {
            "stolen_percent": round(100 * (stolen_s() - stolen) / took, 2),
            "threads": scheduling(processes),
        }
        if learning is not None:
            extra["learner_steps"] = learner_steps(learning.log) - steps
        extra["peers"] = {kind: peer.stop() for kind, peer in peers.items()}
        machine = {cpu: peer.stop() for cpu, peer in floors.items()}
    seen = watch.seen(span.begin_ns, span.end_ns)
    return {
        "load": load.words,
        **timing(seen, (span.end_ns - span.begin_ns) / 1e9, stalls(machine)),
        "machine": without_stalls(machine, span.begin_ns, span.end_ns),
        **_cpu(cpu),
        **_span(span),
        **extra,
    }


def _cpu(percent: Mapping[str, float]) -> dict[str, Any]:
    ours = {name: value for name, value in percent.items() if not name.startswith("bench")}
    return {
        "cpu_percent": round(sum(ours.values()), 1),
        "cpu_percent_by_process": ours,
        "bench_cpu_percent": round(sum(percent.values()) - sum(ours.values()), 1),
    }


def _span(span: Span) -> dict[str, Any]:
    return {
        "seconds": round((span.end_ns - span.begin_ns) / 1e9, 1),
        "episodes": span.episodes,
        "interruptions": span.interruptions,
    }


def report(loads: dict[str, Any], wanted: Sequence[str], seconds: float) -> dict[str, Any]:
    """Everything that is printed: the loads measured of those ``wanted``, and which keep the budget."""
    held = {
        name: figures["missed"] <= BUDGET["missed"]
        and figures["lateness_ms_p999"] < BUDGET["lateness_ms_p999"]
        for name, figures in loads.items()
    }
    interference = None
    if "idle" in loads and "learning" in loads and loads["idle"]["lateness_ms_p99"] > 0:
        interference = round(loads["learning"]["lateness_ms_p99"] / loads["idle"]["lateness_ms_p99"], 2)
    return {
        "seconds": seconds,
        "cameras": f"2 x {CAMERA_SIZE[0]}x{CAMERA_SIZE[1]}",
        "policy": DESCRIPTION,
        "loads": loads,
        "interference": interference,
        "budget": BUDGET,
        "held": {**held, "all": all(held.values())},
        "complete": list(loads) == list(wanted),
        "definitions": DEFINITIONS,
    }
