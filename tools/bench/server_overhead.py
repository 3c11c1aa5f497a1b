"""What a request costs beyond the inference itself: ours both ways, and pickled frames as peers send them.

All are measured in turn, in one loop, on the same pictures and the same bundle: a slow moment of the
machine is a slow moment for each of them.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from policies.bundle import Bundle
from policies.fastest import open_fastest
from policies.keys import TrustStore
from tools.bench.act_bundle import Served
from tools.bench.common import quantile
from tools.bench.server_client import WAYS, Arm, Asker
from tools.bench.server_peer import Client as PickleClient
from tools.children import Child
from tools.progress import Update

_WARM = 3
_BUDGET_MS = 10_000.0


@dataclass(frozen=True, slots=True)
class Setting:
    """A policy as it is served in the overhead's measurement."""

    served: Served
    precision: Literal["fp32", "int8"]
    threads: int
    rounds: int


async def overhead(setting: Setting, address: str, directory: Path, progress: Update) -> dict[str, Any]:
    """Milliseconds at the median of each way, and what each adds to bare inference.

    A policy server must be serving the setting's bundle at ``address`` with as many threads.
    """
    peer_socket = directory / "peer"
    arguments = ["tools.bench.server_peer", str(peer_socket), str(setting.served.bundle)]
    arguments += [str(setting.served.trust), setting.precision, str(setting.threads)]
    peer = Child("pickling peer", arguments, directory / "peer.log")
    askers = {way: Asker(Arm(address, f"overhead {way}", way, 0.0, 1.0, _BUDGET_MS)) for way in WAYS}
    pickling: PickleClient | None = None
    try:
        peer.wait_for_socket(peer_socket)
        pickling = await asyncio.to_thread(PickleClient, peer_socket)
        ways = {way: await asker.open() for way, asker in askers.items()}
        times = await _measure(setting, askers, pickling, progress)
    finally:
        for asker in askers.values():
            await asker.close()
        if pickling is not None:
            pickling.close()
        peer.stop()
    return {"way": ways["shared"], **_figures(times)}


async def _measure(
    setting: Setting, askers: dict[str, Asker], pickling: PickleClient, progress: Update
) -> dict[str, list[float]]:
    """Milliseconds by way; ``exec`` is what the server says its thread took for the ``shared`` ones."""
    bundle = Bundle.open(setting.served.bundle, TrustStore.load(setting.served.trust))
    session = open_fastest(bundle, setting.precision, setting.threads)
    pictures = askers["shared"].pictures
    state = np.zeros((1, 6), np.float32)
    times: dict[str, list[float]] = {way: [] for way in ("bare", *WAYS, "pickled", "exec")}
    for turn in range(_WARM + setting.rounds):
        images = {name: stack[turn % len(stack)][None] for name, stack in pictures.items()}
        took: dict[str, float] = {}
        begin = time.perf_counter()
        session.infer(state, images)
        took["bare"] = time.perf_counter() - begin
        for way, asker in askers.items():
            begin = time.perf_counter()
            response = await asker.ask()
            took[way] = time.perf_counter() - begin
            if way == "shared":
                took["exec"] = response.exec_ms / 1e3
        begin = time.perf_counter()
        pickling.infer(state, images)
        took["pickled"] = time.perf_counter() - begin
        if turn >= _WARM:
            for way, seconds in took.items():
                times[way].append(seconds * 1e3)
            progress(turn + 1 - _WARM)
    return times


def _figures(times: dict[str, list[float]]) -> dict[str, Any]:
    medians = {way: quantile(values, 50) for way, values in times.items()}
    bare = medians["bare"]
    return {
        "rounds": len(times["bare"]),
        **{f"{way}_ms_p50": median for way, median in medians.items()},
        **{f"{way}_ms_p99": quantile(times[way], 99) for way in ("bare", *WAYS, "pickled")},
        "overhead_ms": round(medians["shared"] - bare, 3),
        "stream_overhead_ms": round(medians["stream"] - bare, 3),
        "message_overhead_ms": round(medians["message"] - bare, 3),
        "pickled_overhead_ms": round(medians["pickled"] - bare, 3),
    }
