"""`ratchet bench swap`: weights that change under a client that asks at 30 Hz."""

from __future__ import annotations

import asyncio
import gc
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import grpc
import numpy as np
import uvloop

from protos.ratchet.v1 import policy_pb2 as pb
from protos.ratchet.v1 import policy_pb2_grpc
from tools.bench.common import quantile, show
from tools.bench.memory import held_mb, resident_mb
from tools.bench.swap_bundles import Bundles, make
from tools.bench.swap_client import PERIOD_NS, Arm
from tools.children import Child
from tools.options import FiniteRange
from tools.progress import bar

_WARM_LOADS = 4  # until as many bundles are resident as ever will be
_SETTLE_S = 0.2
_FEW_MB = 8.0  # what allocators and page tables move about; one engine of the full network holds 400


@dataclass(slots=True)
class Swaps:
    """What the operator saw: milliseconds, the refusals' reasons, and memory after each load and swap."""

    swap_ms: list[float] = field(default_factory=list)
    load_ms: list[float] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    let_in: list[str] = field(default_factory=list)
    all_mb: list[float] = field(default_factory=list)
    server_mb: list[float] = field(default_factory=list)


@click.command(epilog="\b\nExample:\n  ratchet bench swap --swaps 200 --json\n")
@click.option("--swaps", type=click.IntRange(1, 10_000), default=200, show_default=True)
@click.option(
    "--load-every", type=click.IntRange(1), default=8, show_default=True,
    help="Every so many swaps the bundle is loaded afresh first, and another one evicted.",
)  # fmt: skip
@click.option("--backend", default="onnx", show_default=True)
@click.option("--size", type=click.IntRange(32, 640), default=128, show_default=True, help="Of both cameras.")
@click.option("--small", is_flag=True, help="A tiny network in place of the published 51.6 M weights.")
@click.option("--isolation", type=click.Choice(["process", "thread"]), default="process", show_default=True)
@click.option(
    "--quiet-s",
    type=FiniteRange(0.0, 600.0),
    default=10.0,
    show_default=True,
    help="Without swaps, to compare with.",
)
@click.option("--folder", type=click.Path(path_type=Path), help="Keep the bundles here for the next time.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def command(
    swaps: int, load_every: int, backend: str, size: int, small: bool, isolation: str, quiet_s: float,
    folder: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Swap bundles under a client that asks at 30 Hz, loading fresh ones and refusing bad ones meanwhile.

    A real server process, the runtime's own policy client, ACT with two cameras. Each tick asks when the
    last answer is there; the gap is the time from one answer to the next.
    """
    with tempfile.TemporaryDirectory(prefix="swap") as temporary:
        root = folder or Path(temporary)
        with bar("exporting bundles", 1):
            bundles = make(root, size, small=small)
        config = _config(Path(temporary), bundles, backend, isolation)
        child = Child("policy server", ["policy_server", "--config", str(config)], Path(temporary) / "log")
        try:
            child.wait_for_socket(Path(temporary) / "s", 120.0)
            plan = _Plan(bundles, swaps, load_every, quiet_s, size, isolation == "process")
            figures = uvloop.run(_measure(plan, f"unix:{temporary}/s", child.process.pid))
        finally:
            child.stop()
    figures["config"] = {
        "swaps": swaps,
        "backend": backend,
        "size": size,
        "small": small,
        "isolation": isolation,
    }
    show(figures, as_json)


@dataclass(frozen=True, slots=True)
class _Plan:
    bundles: Bundles
    swaps: int
    load_every: int
    quiet_s: float
    size: int
    shadow: bool


def _config(folder: Path, bundles: Bundles, backend: str, isolation: str) -> Path:
    path = folder / "server.toml"
    path.write_text(
        f'address = "unix:{folder}/s"\ntrust = "{bundles.trust}"\nbundle = "{bundles.good[0].path}"\n'
        f'allowed_roots = ["{bundles.root}"]\nbackend = "{backend}"\nisolation = "{isolation}"\n'
        f'max_resident = 3\nstate = "{folder}/state.json"\n'
    )
    return path


async def _measure(plan: _Plan, address: str, pid: int) -> dict[str, Any]:
    arm = Arm(address, plan.size, plan.bundles.good[0].manifest.chunk)
    gc.collect()
    gc.freeze()
    gc.disable()  # as in the runtime, where it runs between ticks
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = policy_pb2_grpc.PolicyServiceStub(channel)
        driving = asyncio.create_task(arm.drive())
        await arm.answered(10)
        arm.begin("quiet")
        await asyncio.sleep(plan.quiet_s)
        shadow = await _shadow(plan, stub, arm) if plan.shadow else None
        arm.begin("swaps")
        seen = await _operate(plan, stub, pid, arm)
        arm.end()
        status = await stub.Status(pb.StatusRequest(), timeout=10)
        driving.cancel()
        await asyncio.wait([driving])
        await arm.close()
    return {**_report(plan, arm, seen, status), "shadow": shadow}


async def _shadow(plan: _Plan, stub: Any, arm: Arm) -> dict[str, Any]:
    """The same quiet seconds with a second bundle on every observation that it has time for."""
    arm.end()
    bundle = str(plan.bundles.good[1].path)
    await stub.Shadow(pb.ShadowRequest(bundle=bundle, seconds=3600), timeout=300)
    arm.begin("shadow")
    await asyncio.sleep(plan.quiet_s)
    arm.end()
    found = await stub.Shadow(pb.ShadowRequest(stop=True), timeout=60)
    counts = {
        "compared": found.compared,
        "skipped": found.skipped,
        "exec_ms_p50": round(found.exec_ms_p50, 2),
    }
    return {**counts, "client": arm.phases["shadow"].figures()}


async def _operate(plan: _Plan, stub: Any, pid: int, arm: Arm) -> Swaps:
    """Load, swap, refuse: each swap is answered by the new version before the next."""
    seen, good = Swaps(), plan.bundles.good
    bad = list(plan.bundles.bad.items())
    active, previous = good[0], None
    with bar("swaps", plan.swaps, "swaps") as progress:
        for number in range(plan.swaps):
            progress(number)
            if previous is None or number % plan.load_every == 0:
                status = await stub.Status(pb.StatusRequest(), timeout=10)
                resident = {slot.version for slot in status.slots}
                target = next(bundle for bundle in good if bundle.version not in resident)
                begin = time.perf_counter()
                await stub.Load(pb.LoadRequest(path=str(target.path)), timeout=300)
                seen.load_ms.append((time.perf_counter() - begin) * 1e3)
            else:
                target = previous
            begin = time.perf_counter()
            request = pb.SwapRequest(
                version=target.version, by_person=True, without_probation=number % 2 == 0
            )
            await stub.Swap(request, timeout=60)
            seen.swap_ms.append((time.perf_counter() - begin) * 1e3)
            active, previous = target, active
            await arm.answered_by(active.version)
            if number % plan.load_every == 0:
                await asyncio.sleep(_SETTLE_S)
                seen.all_mb.append(await asyncio.to_thread(held_mb, pid))
                seen.server_mb.append(resident_mb(pid))
            elif number % plan.load_every == plan.load_every // 2 and bad:
                name, path = bad[len(seen.refused) % len(bad)]
                await _refusal(stub, name, path, seen)
    for name, path in bad:
        if name not in seen.refused:
            await _refusal(stub, name, path, seen)
    return seen


async def _refusal(stub: Any, name: str, path: Path, seen: Swaps) -> None:
    try:
        await stub.Load(pb.LoadRequest(path=str(path), activate=True, by_person=True), timeout=300)
    except grpc.aio.AioRpcError as error:
        seen.refused[name] = (error.details() or "").replace(str(path.parent), "…")
    else:
        seen.let_in.append(name)


def _report(plan: _Plan, arm: Arm, seen: Swaps, status: pb.StatusResponse) -> dict[str, Any]:
    quiet, swapping = arm.phases["quiet"], arm.phases["swaps"]
    failed = swapping.failures + status.failed + status.refused + status.dropped
    period_ms = PERIOD_NS / 1e6
    inference_ms = quantile(quiet.trip_ms, 99)
    growth = _growth(seen.all_mb)
    gap = max(swapping.gaps_ms, default=0.0)
    missed = swapping.skipped + swapping.uncovered
    return {
        "failed_requests": failed,
        "missed_ticks": missed,
        "worst_gap_ms": round(gap, 2),
        "swap_ms_p50": quantile(seen.swap_ms, 50),
        "rss_growth_mb": growth,
        "budget": {
            "failed_requests": 0,
            "missed_ticks": 0,
            "worst_gap_ms": round(period_ms + inference_ms, 2),
            "rss_growth_mb": _FEW_MB,
        },
        "held": {
            "failed_requests": failed == 0,
            "missed_ticks": missed == 0,
            "worst_gap_ms": gap < period_ms + inference_ms,
            "rss_growth_mb": growth <= _FEW_MB,
            "refusals": not seen.let_in and set(seen.refused) == set(plan.bundles.bad),
        },
        "swap_ms_max": quantile(seen.swap_ms, 100),
        "fresh_loads": len(seen.load_ms),
        "load_ms_p50": quantile(seen.load_ms, 50),
        "rss_mb": round(seen.all_mb[-1], 1) if seen.all_mb else 0.0,
        "server_rss_growth_mb": _growth(seen.server_mb),
        "rss_how": (
            "PSS of the server and its engine processes after each fresh load and swap; least-squares "
            f"slope times the number of loads, the first {_WARM_LOADS} left out"
        ),
        "quiet": quiet.figures(),
        "swaps": swapping.figures(),
        "refused": seen.refused,
    }


def _growth(samples: list[float]) -> float:
    """MiB over the run by a straight line through the samples; 0 when there are too few."""
    later = samples[_WARM_LOADS:]
    if len(later) < 3:
        return 0.0
    slope = np.polyfit(np.arange(len(later)), later, 1)[0]
    return round(float(slope) * (len(later) - 1), 2)
