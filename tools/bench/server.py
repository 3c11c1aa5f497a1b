"""`ratchet bench server`: many arms on one policy server, and what serving adds to bare inference."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np

from tools.bench.act_bundle import Served, export_untrained
from tools.bench.common import quantile, show
from tools.bench.server_client import Arm
from tools.bench.server_fleet import run_fleet
from tools.children import Child
from tools.options import FiniteRange
from tools.progress import bar

CAMERA = (480, 640)
OVERHEAD_BUDGET_MS = 2.0
#: Jain's index of the clients' answers, a greedy one among them or not.
FAIRNESS_BUDGET = 0.9
_RATE_HZ = 30.0
_BUDGET_MS = 1000.0
_GREEDY_DEPTH = 8
_TINY_RESIZE = (48, 64)
_ROUNDS = {"tiny": 300, "full": 60}

Policy = Literal["tiny", "full"]


def _counts(_: click.Context, __: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is no list of numbers such as 1,4,16") from error
    if not counts or not all(1 <= count <= 64 for count in counts):
        raise click.BadParameter("between 1 and 64 clients")
    return counts


@click.command(
    "server",
    epilog="\b\nExamples:\n"
    "  ratchet bench server --clients 1,4,16 --json\n"
    "  ratchet bench server --policy tiny --seconds 3\n",
)
@click.option("--clients", default="1,4,16", callback=_counts, show_default=True, help="How many at a time.")
@click.option("--seconds", type=FiniteRange(1, 600), default=6.0, show_default=True, help="For each.")
@click.option(
    "--policy",
    "policies",
    type=click.Choice(["tiny", "full"]),
    multiple=True,
    default=("tiny", "full"),
    show_default=True,
    help="A small ACT, the published one in int8, or both.",
)
@click.option("--threads", type=click.IntRange(1, 64), default=1, show_default=True, help="Of an inference.")
@click.option(
    "--bundles",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep the exported bundles here, and use those that are.",
)
@click.option("--json", "as_json", is_flag=True, help="For a program.")
def command(
    clients: tuple[int, ...],
    seconds: float,
    policies: tuple[Policy, ...],
    threads: int,
    bundles: Path | None,
    as_json: bool,
) -> None:
    """Arms that ask at 30 Hz with two 640×480 cameras; server and each client in processes of their own.

    The overhead is the median round trip on this host less the median of the same inference in this
    process, measured in turn, beside a stream, pictures in the message, and pickled frames.
    """
    with tempfile.TemporaryDirectory(prefix="bench") as scratch:
        root = Path(scratch)
        figures: dict[str, dict[str, Any]] = {
            policy: asyncio.run(_measure(policy, bundles or root, root, clients, seconds, threads))
            for policy in dict.fromkeys(policies)
        }
    show(report(figures, clients, threads), as_json)


async def _measure(
    policy: Policy, bundles: Path, root: Path, clients: Sequence[int], seconds: float, threads: int
) -> dict[str, Any]:
    """Everything about one policy."""
    from tools.bench.server_overhead import Setting, overhead

    served = await asyncio.to_thread(_bundle, policy, bundles / policy)
    form: Literal["fp32", "int8"] = "fp32" if policy == "tiny" else "int8"
    directory = root / f"run-{policy}"
    directory.mkdir()
    address = f"unix:{directory}/s"
    arguments = ["policy_server", "--address", address, "--bundle", str(served.bundle), "--die-with-parent"]
    arguments += ["--trust", str(served.trust), "--threads", str(threads)]
    arguments += ["--backend", "onnx" if form == "fp32" else "onnx-int8"]
    server = Child("policy server", arguments, directory / "server.log")
    try:
        server.wait_for_socket(directory / "s")
        setting = Setting(served, form, threads, _ROUNDS[policy])
        with bar(f"overhead, {policy}", setting.rounds, "rounds") as update:
            over = await overhead(setting, address, directory, update)
        fleets = {}
        with bar(f"clients, {policy}", len(clients) + 1) as update:
            for done, count in enumerate(clients):
                update(done, f"{count} clients")
                arms = [_arm(address, f"arm {n}", seconds) for n in range(count)]
                fleets[str(count)] = fleet_figures(await run_fleet(arms), seconds)
            update(len(clients), "4 clients, one of them greedy")
            arms = [_arm(address, "greedy", seconds, _GREEDY_DEPTH)]
            arms += [_arm(address, f"arm {n}", seconds) for n in range(3)]
            greedy = fleet_figures(await run_fleet(arms), seconds)
    finally:
        server.stop()
    return {"overhead": over, "clients": fleets, "greedy": greedy}


def _arm(address: str, session: str, seconds: float, depth: int = 1) -> Arm:
    """An arm; a greedy one keeps ``depth`` requests under way and gives each as little time as the others."""
    rate = _RATE_HZ * depth
    height, width = CAMERA
    return Arm(address, session, "shared", seconds, rate, _BUDGET_MS, depth, height=height, width=width)


def _bundle(policy: Policy, root: Path) -> Served:
    from policies.config import FULL_CAMERAS, act_full, act_small

    if policy == "full":
        return export_untrained(root, act_full(cameras=FULL_CAMERAS))
    return export_untrained(root, act_small(cameras=FULL_CAMERAS).model_copy(update={"resize": _TINY_RESIZE}))


def fleet_figures(fared: Sequence[Mapping[str, Any]], seconds: float) -> dict[str, Any]:
    """What a number of clients got, client by client where it matters.

    ``fairness`` is Jain's index of their answers: 1 when all got as many, 1/n when one got everything
    (Jain, Chiu and Hawe 1984).
    """
    answers = [len(one["answers_ms"]) for one in fared]
    batches: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    for one in fared:
        batches.update(one["batches"])
        missed.update(one["missed"])
    together = [ms for one in fared for ms in one["answers_ms"]]
    return {
        "throughput": round(sum(answers) / seconds, 2),
        "p50_ms": quantile(together, 50),
        "p99_ms": quantile(together, 99),
        "client_p50_ms": [quantile(one["answers_ms"], 50) for one in fared],
        "client_p99_ms": [quantile(one["answers_ms"], 99) for one in fared],
        "answers": answers,
        "fairness": jain(answers),
        "batch_sizes": dict(sorted(batches.items(), key=lambda item: int(item[0]))),
        "dropped": missed["DEADLINE_EXCEEDED"],
        "refused": missed["RESOURCE_EXHAUSTED"],
        "failed": sum(missed.values()) - missed["DEADLINE_EXCEEDED"] - missed["RESOURCE_EXHAUSTED"],
        "shared": sum(one["way"] == "shared memory" for one in fared),
    }


def jain(shares: Sequence[float]) -> float:
    """Jain's fairness index of non-negative shares; 1 of nothing."""
    values = np.asarray(shares, dtype=np.float64)
    squares = float((values**2).sum()) * len(values)
    return round(float(values.sum()) ** 2 / squares, 4) if squares else 1.0


def report(figures: Mapping[str, Any], clients: Sequence[int], threads: int) -> dict[str, Any]:
    """All that is printed: the overheads of the worst policy first, then each policy's figures."""
    overheads = {policy: each["overhead"]["overhead_ms"] for policy, each in figures.items()}
    worst = max(overheads.values())
    fairness = min(fleet["fairness"] for each in figures.values() for fleet in each["clients"].values())
    greedy = min(each["greedy"]["fairness"] for each in figures.values())
    return {
        "cameras": "two 640x480",
        "threads": threads,
        "overhead_ms": worst,
        **{
            key: max(each["overhead"][key] for each in figures.values())
            for key in ("stream_overhead_ms", "message_overhead_ms", "pickled_overhead_ms")
        },
        "fairness": fairness,
        "greedy_fairness": greedy,
        "dropped": sum(f["dropped"] for each in figures.values() for f in each["clients"].values()),
        **figures,
        "budget": {"overhead_ms": OVERHEAD_BUDGET_MS, "fairness": FAIRNESS_BUDGET},
        "held": {
            "overhead_ms": worst < OVERHEAD_BUDGET_MS,
            "fairness": min(fairness, greedy) >= FAIRNESS_BUDGET,
        },
    }
