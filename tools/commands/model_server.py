"""`ratchet model shadow` and `status`: what a policy server serves, tries and has given up."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from learner.serving import PolicyServer
from protos.access.tls import identity_in
from protos.ratchet.v1 import policy_pb2 as pb
from tools.commands.serve import ADDRESS
from tools.console import say, show_fields, show_json, show_table
from tools.errors import UsageError
from tools.options import FiniteRange, json_flag, server_identity_option
from tools.progress import bar

_POLL_S = 0.5


@click.command(
    epilog="\b\nExamples:\n"
    "  ratchet model shadow 3f2a --seconds 60\n"
    "  ratchet model shadow out/bundle --server unix:/run/ratchet/policy.sock --json\n"
)
@click.argument("bundle", metavar="VERSION|PATH")
@click.option("--server", default=ADDRESS, show_default=True, help="The policy server's address.")
@server_identity_option
@click.option("--seconds", type=FiniteRange(1, 86_400), default=60.0, show_default=True)
@json_flag
def shadow(bundle: str, server: str, tls: Path | None, seconds: float, as_json: bool) -> None:
    """Run a second bundle on what the serving one is asked, and compare the actions. None is sent.

    It works in the processor's spare time: observations that come meanwhile are skipped. Ctrl-C ends it.
    """
    with PolicyServer(server, identity=None if tls is None else identity_in(tls)) as client:
        report = client.shadow(_meant(client, bundle), seconds=seconds)
        begin = time.monotonic()
        try:
            with bar("shadow", round(seconds), "s") as progress:
                while report.running:
                    time.sleep(_POLL_S)
                    report = client.shadow("")
                    progress(
                        min(round(time.monotonic() - begin), round(seconds)), f"{report.compared} compared"
                    )
        except KeyboardInterrupt:
            report = client.shadow("", stop=True)
    figures = shadow_figures(report)
    if as_json:
        show_json(figures)
        return
    joints = figures.pop("joint_mean_rad")
    show_fields(figures)
    show_table(
        ["joint", ">mean |difference|, rad"], [[name, f"{value:.5f}"] for name, value in joints.items()]
    )
    if not report.compared:
        say("nothing was compared: is a robot asking this server, in mode policy?")


@click.command(epilog="\b\nExample:\n  ratchet model status --server unix:/run/ratchet/policy.sock\n")
@click.option("--server", default=ADDRESS, show_default=True, help="The policy server's address.")
@server_identity_option
@json_flag
def status(server: str, tls: Path | None, as_json: bool) -> None:
    """Show what a policy server serves, what it would go back to, and who is on probation."""
    with PolicyServer(server, identity=None if tls is None else identity_in(tls)) as client:
        found = client.status()
    figures = status_figures(found)
    if as_json:
        show_json(figures)
        return
    show_fields({k: v for k, v in figures.items() if k not in ("loaded", "barred", "events", "shadow")})
    show_table(
        ["loaded", "backend", "role"], [[s["version"], s["backend"], s["role"]] for s in figures["loaded"]]
    )
    if found.barred:
        show_table(["rolled back", "when", "because"], [[b.version, b.wall, b.reason] for b in found.barred])
    if found.events:
        rows = [[e.wall, e.kind, e.version, e.reason] for e in found.events]
        show_table(["when", "what", "version", "because"], rows[-10:])


def shadow_figures(report: pb.ShadowReport) -> dict[str, Any]:
    """A shadow's report as the commands show it; differences are of single actions."""
    return {
        "version": report.version,
        "serving": report.serving,
        "compared": report.compared,
        "skipped": report.skipped,
        "failed": report.failed,
        "mean_rad": report.mean_rad,
        "max_rad": report.max_rad,
        "mean_sd": report.mean_sd,
        "max_sd": report.max_sd,
        "exec_ms_p50": report.exec_ms_p50,
        "exec_ms_p99": report.exec_ms_p99,
        "seconds": report.seconds,
        "ended": report.reason or "not yet",
        "joint_mean_rad": dict(zip(report.action_names, report.joint_mean_rad, strict=True)),
    }


def status_figures(found: pb.StatusResponse) -> dict[str, Any]:
    """A status as the commands show it."""
    roles = {True: "serves"}
    probation: dict[str, Any] | None = None
    if found.HasField("probation"):
        p = found.probation
        probation = {
            "version": p.version,
            "predecessor": p.predecessor,
            "episodes": p.episodes,
            "of_episodes": p.of_episodes,
            "failures": p.failures,
            "bound": p.bound,
            "e_value": p.e_value,
            "e_limit": p.e_limit,
        }
    return {
        "serving": next((slot.version for slot in found.slots if slot.active), None),
        "previous": found.previous or None,
        "epoch": found.epoch,
        "probation": probation,
        "loaded": [
            {
                "version": slot.version,
                "backend": slot.backend,
                "role": roles.get(slot.active, "previous" if slot.previous else ""),
                "path": slot.path,
                "pid": slot.pid,
            }
            for slot in found.slots
        ],
        "barred": {
            b.version: {"wall": b.wall, "reason": b.reason, "by_server": b.by_server} for b in found.barred
        },
        "events": [
            {"wall": e.wall, "kind": e.kind, "version": e.version, "previous": e.previous, "reason": e.reason}
            for e in found.events
        ],
        "shadow": shadow_figures(found.shadow) if found.HasField("shadow") else None,
    }


def _meant(client: PolicyServer, bundle: str) -> str:
    """A path, or the one resident version that begins so."""
    if Path(bundle).is_dir():
        return str(Path(bundle).absolute())
    found = [slot.version for slot in client.status().slots if slot.version.startswith(bundle)]
    if len(found) != 1:
        what = "no version" if not found else f"{len(found)} versions like"
        raise UsageError(
            f"{what} {bundle!r} is loaded there, and no such directory here; see `ratchet model status`"
        )
    return found[0]
