"""`ratchet bench hostile`: a hundred thousand malformed and hostile requests, and one honest client."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import click
import grpc.aio

from policies.config import act_small
from protos.access.roles import Role
from protos.access.tls import Identity, identity_in, open_channel
from protos.ratchet.v1 import policy_pb2 as pb
from protos.ratchet.v1 import policy_pb2_grpc
from tools.authority import Authority
from tools.bench.act_bundle import export_untrained
from tools.bench.common import quantile, show
from tools.bench.memory import held_mb, open_descriptors
from tools.children import Child
from tools.hostile.attack import LET_IN
from tools.hostile.messages import sound
from tools.options import json_flag
from tools.ports import free_port, listens
from tools.progress import bar

HONEST_HZ = 10.0
HONEST_DEADLINE_S = 5.0
HONEST_JPEG_QUALITY = 90
SETTLE_S = 3.0
#: What the server may hold more of after it all than before, having been warmed up with a tenth of it.
GROWTH_BUDGET_MB = 64.0


@dataclass
class Honest:
    """What became of the honest client's requests."""

    asked: int = 0
    failed: list[str] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Attacked:
    """What was sent, what came of it, how many calls were given up at once, and how long it took."""

    kinds: dict[str, int]
    statuses: dict[str, int]
    given_up: int
    seconds: float


@dataclass(frozen=True)
class Site:
    """The server's arguments, and who comes: identities as folders, and each attacker's share."""

    arguments: list[str]
    honest: Path | None
    attackers: list[tuple[Path | None, float]]


@click.command(
    epilog="\b\nExamples:\n  ratchet bench hostile --requests 100000 --json\n"
    "  ratchet bench hostile --tls --requests 20000"
)
@click.option("--requests", type=click.IntRange(100, 10_000_000), default=100_000, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--tls",
    is_flag=True,
    help="Through mutual TLS: an attacker with a certificate that may only look, one with none, and one "
    "with a certificate that may drive.",
)
@json_flag
def command(requests: int, seed: int, tls: bool, as_json: bool) -> None:
    """Send a policy server what nobody should, while an honest client asks ten times a second.

    Random bytes, flipped bits, wrong shapes, huge tensors, false pictures and memory references,
    pictures that are much work, paths from anywhere; garbage below HTTP/2, half-open connections and
    streams, slow readers, resets, floods.
    """
    with tempfile.TemporaryDirectory(prefix="ratchet-hostile-") as folder:
        show(asyncio.run(_measure(Path(folder), requests, seed, tls)), as_json)


async def _measure(folder: Path, requests: int, seed: int, tls: bool) -> dict[str, Any]:
    served = await asyncio.to_thread(export_untrained, folder, act_small())
    port = free_port()
    address = f"127.0.0.1:{port}"
    site = _encrypted(folder) if tls else Site(["--plaintext"], None, [(None, 0.5)] * 2)
    arguments = ["policy_server", "--address", address, "--die-with-parent", "--log", "error"]
    arguments += ["--bundle", str(served.bundle), "--trust", str(served.trust), *site.arguments]
    server = Child("policy server", arguments, folder / "server.log")
    try:
        await asyncio.to_thread(server.wait_until, lambda: listens(port))
        pid = server.process.pid
        honest = Honest()
        async with _asking(address, site.honest, honest):
            # A tenth of it first: until arenas and caches have their size.
            await _attack(port, site.attackers, max(100, requests // 10), seed + 1000)
            await asyncio.sleep(SETTLE_S)
            before, peak, files = held_mb(pid), 0.0, open_descriptors(pid)
            attack = asyncio.create_task(_attack(port, site.attackers, requests, seed))
            while not attack.done():
                peak = max(peak, held_mb(pid))
                await asyncio.wait([attack], timeout=0.2)
            sent = attack.result()
            await asyncio.sleep(SETTLE_S)
            after, files_after = held_mb(pid), open_descriptors(pid)
        state = await _state(address, site.honest)
        tracebacks = server.log.read_text(errors="replace").count("Traceback")
    finally:
        server.stop()
    growth, let_in = after - before, sent.statuses.get(LET_IN, 0)
    sound_still = state["serving"] and not tracebacks and not let_in
    return {
        "tls": tls,
        "requests": sum(sent.kinds.values()),
        "seconds": round(sent.seconds, 1),
        "kinds": dict(sorted(sent.kinds.items())),
        "given_up": sent.given_up,
        "statuses": dict(sorted(sent.statuses.items())),
        "strangers_let_in": let_in,
        "serving": state["serving"],
        "tracebacks": tracebacks,
        "sessions_left": state["clients"],
        "frame_lanes_left": state["lanes"],
        "descriptors_grown": files_after - files,
        "honest_requests": honest.asked,
        "honest_failed": len(honest.failed),
        "honest_failures": honest.failed[:3],
        "honest_ms_p50": quantile(honest.ms, 50),
        "honest_ms_p99": quantile(honest.ms, 99),
        "honest_ms_max": quantile(honest.ms, 100),
        "rss_mb_before": round(before, 1),
        "rss_mb_peak": round(peak, 1),
        "rss_mb_after": round(after, 1),
        "rss_growth_mb": round(growth, 1),
        "budget": {
            "honest_failed": 0,
            "tracebacks": 0,
            "strangers_let_in": 0,
            "rss_growth_mb": GROWTH_BUDGET_MB,
        },
        "held": sound_still and not honest.failed and growth < GROWTH_BUDGET_MB,
    }


def _encrypted(folder: Path) -> Site:
    """A temporary authority: the server's files, an honest client, and those of three attackers."""
    authority, _ = Authority.ensure(folder / "authority")
    server, honest, look, stranger, drive = (
        folder / name for name in ("tls", "honest", "look", "stranger", "drive")
    )
    authority.server(server, ["127.0.0.1"])
    authority.client(honest, "honest", Role.DRIVE)
    authority.client(look, "curious", Role.LOOK)
    authority.client(drive, "reckless", Role.DRIVE)
    stranger.mkdir()
    shutil.copy(look / "ca.pem", stranger)
    files = {"certificate": "server.pem", "key": "server.key", "ca": "ca.pem"}
    config = folder / "server.toml"
    # JSON's strings are TOML's.
    lines = [f"{key} = {json.dumps(str(server / name))}\n" for key, name in files.items()]
    config.write_text("[tls]\n" + "".join(lines))
    return Site(["--config", str(config)], honest, [(look, 0.4), (stranger, 0.4), (drive, 0.2)])


async def _attack(
    port: int, attackers: list[tuple[Path | None, float]], requests: int, seed: int
) -> Attacked:
    """All attackers at once: what they sent, what they were told, and how long it took."""
    began = time.monotonic()
    counts = [round(requests * share) for _, share in attackers]
    with bar("hostile requests", sum(counts)) as update:
        done = [0] * len(attackers)

        async def one(index: int) -> dict[str, Any]:
            identity, _ = attackers[index]
            who = [] if identity is None else ["--identity", str(identity)]
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tools.hostile.attack", "127.0.0.1", str(port),
                "--count", str(counts[index]), "--seed", str(seed + index), *who,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            assert process.stderr is not None
            assert process.stdout is not None
            async for line in process.stderr:
                if line.strip().isdigit():
                    done[index] = int(line)
                    update(sum(done))
            return json.loads(await process.stdout.read())

        reports = await asyncio.gather(*(one(index) for index in range(len(attackers))))
    kinds: collections.Counter[str] = collections.Counter()
    statuses: collections.Counter[str] = collections.Counter()
    given_up = 0
    for report in reports:
        kinds.update(report["kinds"])
        statuses.update(report["statuses"])
        given_up += report["given_up"]
    return Attacked(kinds, statuses, given_up, time.monotonic() - began)


@contextlib.asynccontextmanager
async def _asking(address: str, identity: Path | None, honest: Honest) -> AsyncIterator[None]:
    """An honest client at work for as long as the block lasts; it sends raw pictures and JPEGs in turn."""
    requests = [sound(Random(7), jpeg_quality=quality) for quality in (None, HONEST_JPEG_QUALITY)]
    for request in requests:
        request.session = "honest"

    async def ask() -> None:
        async with open_channel(address, _shown(identity)) as channel:
            stub = policy_pb2_grpc.PolicyServiceStub(channel)
            while True:
                begin = time.monotonic()
                request = requests[honest.asked % len(requests)]
                honest.asked += 1
                try:
                    await stub.Infer(request, timeout=HONEST_DEADLINE_S)
                    honest.ms.append((time.monotonic() - begin) * 1e3)
                except grpc.aio.AioRpcError as error:
                    honest.failed.append(f"{error.code().name}: {error.details()}")
                await asyncio.sleep(max(0.0, begin + 1.0 / HONEST_HZ - time.monotonic()))

    task = asyncio.create_task(ask())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _shown(identity: Path | None) -> Identity | None:
    return None if identity is None else identity_in(identity)


async def _state(address: str, identity: Path | None) -> dict[str, Any]:
    async with open_channel(address, _shown(identity)) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        try:
            status = await stub.Status(pb.StatusRequest(), timeout=10)
        except grpc.aio.AioRpcError:
            return {"serving": False, "clients": -1, "lanes": -1}
    return {
        "serving": any(slot.active for slot in status.slots),
        "clients": len(status.clients),
        "lanes": status.lanes,
    }
