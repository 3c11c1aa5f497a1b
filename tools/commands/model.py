"""`ratchet model`: bundles and the registry that says which of them is champion."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from learner.ledger import Entry, Ledger
from policies.bundle import Bundle
from policies.errors import PolicyError
from policies.keys import TrustStore
from protos.access.tls import identity_in
from tools.commands.model_server import shadow, status
from tools.console import disk_errors, say, show_fields, show_json, show_table
from tools.errors import UsageError
from tools.options import (
    PATH,
    FiniteRange,
    json_flag,
    keys_option,
    registry_options,
    server_identity_option,
    trust_option,
)
from tools.paths import keys_dir, registries_dir, registry_dir, trust_dir
from tools.registry import LEDGER, Registry, versions

EXAMPLES = """
\b
Examples:
  ratchet model ls
  ratchet model show out/bundle
  ratchet model promote 3f2a --server unix:/run/ratchet/policy.sock
"""
SERVER_HELP = "Address of a policy server that is to follow."


@click.group(epilog=EXAMPLES)
def model() -> None:
    """List, show, verify, import, promote and roll back policy versions.

    Where a VERSION is asked for, its first digits will do.
    """


@model.command(epilog="\b\nExample:\n  ratchet model ls --name pick_place")
@click.option("--registry", type=PATH, help="One registry [default: all in ~/.local/share/ratchet].")
@click.option("--name", help="Only the policy of this name.")
@json_flag
def ls(registry: Path | None, name: str | None, as_json: bool) -> None:
    """List every version of every policy, and who is champion."""
    if registry is not None or name is not None:
        roots = [_existing(registry_dir(registry, name or ""))]
    else:
        roots = sorted(p.parent for p in registries_dir().glob(f"*/{LEDGER}"))
    rows = []
    for root in roots:
        ledger = Ledger(root / LEDGER)
        rows += [{"registry": root.name, **asdict(v), "state": str(v.state)} for v in versions(ledger, root)]
        ledger.close()
    if as_json:
        show_json(rows)
    elif rows:
        show_table(list(rows[0]), [list(row.values()) for row in rows])
    else:
        say("no policy yet; train one with `ratchet train`, or bring one in with `ratchet model add`")


@model.command(
    epilog="\b\nExamples:\n  ratchet model show out/bundle\n  ratchet model show 3f2a --name pick_place"
)
@click.argument("bundle", metavar="BUNDLE|VERSION")
@registry_options
@keys_option
@trust_option
@json_flag
def show(
    bundle: str, registry: Path | None, name: str, keys: Path | None, trust: Path | None, as_json: bool
) -> None:
    """Show a bundle (verified first): what it drives, how it was made, what became of it."""
    root = registry_dir(registry, name)
    opened = _find(bundle, root, TrustStore.load(trust_dir(trust, keys)))
    history = _history(root, opened.version)
    manifest = opened.manifest
    if as_json:
        show_json(
            {
                "version": opened.version,
                "path": opened.path,
                "signer": opened.signer,
                "manifest": manifest.model_dump(mode="json"),
                "history": [asdict(entry) for entry in history],
            }
        )
        return
    show_fields(_summary(opened))
    show_table(["file", ">bytes", "sha256"], [[f.path, f.size, f.sha256] for f in manifest.files])
    if history:
        show_table(["when", "became", "by", "because"], [[e.wall, e.state, e.who, e.why] for e in history])


@model.command(epilog="\b\nExample:\n  ratchet model verify bundles/*")
@click.argument("bundles", nargs=-1, required=True, type=PATH)
@click.option("--run", is_flag=True, help="Also run the golden vectors, in both ONNX forms, on this machine.")
@keys_option
@trust_option
@json_flag
def verify(
    bundles: tuple[Path, ...], run: bool, keys: Path | None, trust: Path | None, as_json: bool
) -> None:
    """Check signature, hashes and schema of bundle directories. Exit code 1 when one is bad."""
    trusted = TrustStore.load(trust_dir(trust, keys))
    rows = [_verified(path, trusted, run) for path in bundles]
    if as_json:
        show_json(rows)
    else:
        for row in rows:
            click.echo(f"{'ok ' if row['ok'] else 'BAD'} {row['path']}: {row['detail']}")
    if not all(row["ok"] for row in rows):
        sys.exit(1)


@model.command(epilog="\b\nExample:\n  ratchet model add fetched/bundle --name pick_place")
@click.argument("bundle", type=PATH)
@registry_options
@keys_option
@trust_option
def add(bundle: Path, registry: Path | None, name: str, keys: Path | None, trust: Path | None) -> None:
    """Take a bundle into the registry: the first is champion, later ones are candidates for the gate."""
    opened = Bundle.open(bundle, TrustStore.load(trust_dir(trust, keys)))
    root = registry_dir(registry, name)
    with disk_errors(root), Registry.open(root, name, keys_dir(keys), trust_dir(trust, keys)) as held:
        standing = held.add(opened, why=f"added from {bundle}")
    click.echo(f"{opened.version} is {standing} of {name}")


@model.command(
    "import",
    epilog="\b\nExamples:\n"
    "  ratchet model import pretrained_model --out out/act --calibration koch.json\n"
    "  ratchet model import pretrained_model --out out/act --robot so100 --store episodes",
)
@click.argument("checkpoint", type=PATH)
@click.option("--out", type=PATH, required=True, help="Where the bundle goes; must not exist.")
@click.option("--name", default="policy", show_default=True, help="Name of the policy.")
@click.option("--robot", help="Kind of robot [default: koch with --calibration, else unknown].")
@click.option(
    "--rate",
    "rate_hz",
    type=FiniteRange(1.0, 1000.0),
    default=30.0,
    show_default=True,
    help="Control rate, Hz.",
)
@click.option("--state-names", default="", help="Names of the joints measured, with commas.")
@click.option("--action-names", default="", help="Names of the joints driven, with commas.")
@click.option("--calibration", type=PATH, help="The Koch follower's LeRobot calibration: to speak rad.")
@click.option("--degrees", is_flag=True, help="It was recorded with use_degrees.")
@click.option("--store", type=PATH, help="Episodes to quantise with [default: made-up observations].")
@click.option("--where", default="true", help="With --store: SQL condition over its catalogue.")
@keys_option
def import_command(checkpoint: Path, out: Path, state_names: str, action_names: str, keys: Path | None,
                   **given: Any) -> None:  # fmt: skip
    """Make a signed bundle of a LeRobot ACT checkpoint (its directory pretrained_model).

    Without --calibration the bundle keeps LeRobot's units and will not be run on an arm that speaks rad.
    """
    from policies.keys import ensure_key
    from tools.checkpoint_import import Source, import_checkpoint

    source = Source(
        checkpoint=checkpoint, state_names=_words(state_names), action_names=_words(action_names), **given
    )
    with disk_errors(out.parent):
        bundle = import_checkpoint(source, out, ensure_key(keys_dir(keys)))
    show_fields(_summary(bundle))
    if source.store is None:
        say("quantised with made-up observations: give --store for an int8 form to rely on")
    say(f"next: ratchet model add {out}")


@model.command(epilog="\b\nExample:\n  ratchet model promote 3f2a --server 127.0.0.1:50061")
@click.argument("version")
@click.option("--server", help=SERVER_HELP)
@server_identity_option
@click.option("--without-gate", is_flag=True, help="Take a candidate that no gate has judged.")
@click.option("--why", help="The reason, for the ledger.")
@registry_options
@keys_option
@trust_option
def promote(
    version: str, server: str | None, tls: Path | None, without_gate: bool, why: str | None,
    registry: Path | None, name: str, keys: Path | None, trust: Path | None,
) -> None:  # fmt: skip
    """Make VERSION champion: one that passed the gate, or that was champion before."""
    if without_gate and not why:
        raise UsageError("--without-gate needs --why REASON: the ledger keeps it")
    with _open(registry, name, keys, trust, server, tls) as held:
        bundle = held.promote(version, without_gate, why)
    click.echo(f"{bundle.version} is champion of {name}" + (f", served at {server}" if server else ""))


@model.command(
    epilog="\b\nExample:\n  ratchet model rollback --why 'drops the cube' --server 127.0.0.1:50061"
)
@click.option("--server", help=SERVER_HELP)
@server_identity_option
@click.option("--why", required=True, help="The reason, for the ledger.")
@registry_options
@keys_option
@trust_option
def rollback(
    server: str | None,
    tls: Path | None,
    why: str,
    registry: Path | None,
    name: str,
    keys: Path | None,
    trust: Path | None,
) -> None:
    """Go back to the champion before. The present one cannot come back without passing a gate anew."""
    with _open(registry, name, keys, trust, server, tls) as held:
        bundle = held.roll_back(why)
    click.echo(f"{bundle.version} is champion of {name} again" + (f", served at {server}" if server else ""))


@model.command(
    epilog="\b\nExample:\n  ratchet model ask 127.0.0.1:50061 --store episodes --episode 2026 --step 50"
)
@click.argument("server")
@server_identity_option
@click.option("--store", type=PATH, required=True, help="The episode store.")
@click.option("--episode", "episode_id", required=True, help="Whose observation; may be cut short.")
@click.option("--step", type=click.IntRange(0), default=0, show_default=True, help="Which of its steps.")
@json_flag
def ask(server: str, tls: Path | None, store: Path, episode_id: str, step: int, as_json: bool) -> None:
    """Send a recorded observation to the policy server at SERVER and show the actions it answers."""
    from tools.asking import ask_server

    identity = None if tls is None else identity_in(tls)
    answer = ask_server(server, store, episode_id, step, identity)
    if as_json:
        show_json(answer)
        return
    show_fields({k: answer[k] for k in ("version", "epoch", "exec_ms", "round_trip_ms")})
    steps = [(i, row) for i, row in enumerate(answer["actions"]) if i in (0, 1, 2, 3, 7, 15, 31, 63, 99)]
    columns = ["action", *(f">+{i}" for i, _ in steps), ">recorded"]
    names, recorded = answer["action_names"], answer["recorded"]
    show_table(
        columns,
        [[n, *(f"{r[a]:.4f}" for _, r in steps), f"{recorded[a]:.4f}"] for a, n in enumerate(names)],
    )


model.add_command(shadow)
model.add_command(status)


def _open(
    registry: Path | None,
    name: str,
    keys: Path | None,
    trust: Path | None,
    server: str | None,
    tls: Path | None = None,
) -> AbstractContextManager[Registry]:
    root = _existing(registry_dir(registry, name))
    identity = None if tls is None else identity_in(tls)
    return Registry.open(root, name, keys_dir(keys), trust_dir(trust, keys), server, identity)


def _existing(root: Path) -> Path:
    if not (root / LEDGER).exists():
        raise UsageError(f"no registry in {root}; give --registry or --name, or see `ratchet model ls`")
    return root


def _find(bundle: str, root: Path, trust: TrustStore) -> Bundle:
    """By directory, else by version in the registry."""
    if Path(bundle).is_dir():
        return Bundle.open(bundle, trust)
    if not (root / LEDGER).exists():
        raise UsageError(f"{bundle!r} is no directory, and there is no registry in {root}; check the path")
    ledger = Ledger(root / LEDGER)
    found = [v for v in versions(ledger, root) if v.version.startswith(bundle)]
    ledger.close()
    if len(found) != 1 or found[0].path is None:
        what = "no version" if not found else f"{len(found)} versions like"
        raise UsageError(f"{what} {bundle!r} in {root}, and no such directory; see `ratchet model ls`")
    return Bundle.open(found[0].path, trust)


def _history(root: Path, version: str) -> list[Entry]:
    if not (root / LEDGER).exists():
        return []
    ledger = Ledger(root / LEDGER)
    try:
        return ledger.history(version)
    finally:
        ledger.close()


def _verified(path: Path, trust: TrustStore, run: bool) -> dict[str, Any]:
    try:
        bundle = Bundle.open(path, trust)
        detail = f"version {bundle.version}, signed by {bundle.signer}"
        if run:
            from policies.fastest import open_fastest
            from policies.golden import check_golden

            errors = [check_golden(open_fastest(bundle, form), bundle) for form in ("fp32", "int8")]
            detail += f", golden vectors off by {errors[0]:.1e} σ (fp32), {errors[1]:.1e} σ (int8)"
    except PolicyError as error:
        return {"path": str(path), "ok": False, "version": None, "detail": str(error)}
    return {"path": str(path), "ok": True, "version": bundle.version, "detail": detail}


def _summary(bundle: Bundle) -> dict[str, object]:
    m = bundle.manifest
    p = m.parity
    return {
        "version": f"{bundle.version} ({m.name} no. {m.version_number}, {m.created})",
        "path": bundle.path,
        "signer": bundle.signer,
        "parent": m.parent,
        "robot": f"{m.robot}, {m.rate_hz:g} Hz",
        "state": " ".join(m.state_names),
        "action": f"{' '.join(m.action_names)} ({m.action_convention.kind}, {m.action_convention.unit})",
        "cameras": ", ".join(f"{c.name} {c.height}x{c.width}" for c in m.cameras),
        "chunk": f"{m.chunk} actions, {m.execute} played",
        "training": {k: v for k, v in m.training.items() if k not in ("config", "episode_digests")},
        "dataset": m.dataset,
        "evaluation": m.evaluation,
        "monitors": "calibrated" if m.monitors is not None else "not calibrated",
        "parity": f"fp32 {p.fp32_error:.1e} σ, int8 {p.int8_error:.1e} σ ({p.int8_scheme})",
    }


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
