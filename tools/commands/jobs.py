"""`ratchet jobs`: training on another process or machine, and bringing its bundle home."""

from __future__ import annotations

import json
import secrets
import signal
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import click

from learner.errors import JobError
from learner.jobs import JobStatus, TrainingClient
from policies.keys import TrustStore
from tools.config import read_toml
from tools.console import disk_errors, say, show_json, show_table
from tools.errors import UsageError
from tools.options import PATH, json_flag, keys_option, trust_option
from tools.paths import keys_dir, registries_dir, trust_dir

EXAMPLES = """
\b
Examples:
  ratchet jobs serve --root jobs
  ratchet jobs submit --store episodes --where "kind = 'demo'" --set steps=3000 --watch
  ratchet jobs fetch 1a2b3c4d5e6f7a8b --out out/bundle
"""
ADDRESS = "127.0.0.1:50062"
F = TypeVar("F", bound=Callable)


@click.group(epilog=EXAMPLES)
def jobs() -> None:
    """Submit training jobs to a training service, watch them, fetch their bundles."""


def _server_option(command: F) -> F:
    return click.option(
        "--server", default=ADDRESS, show_default=True, help="Address of the training service."
    )(command)


@jobs.command(
    epilog="\b\nExample:\n  ratchet jobs serve --root jobs --address unix:/run/ratchet/training.sock"
)
@click.option("--root", type=PATH, required=True, help="Where jobs are kept; unfinished ones are taken up.")
@click.option("--address", default=ADDRESS, show_default=True, help="unix:/path, or a loopback host:port.")
@click.option("--nice", type=click.IntRange(0, 19), default=10, show_default=True)
@keys_option
@trust_option
def serve(root: Path, address: str, nice: int, keys: Path | None, trust: Path | None) -> None:
    """Run a training service on this machine: one job at a time, until Ctrl-C.

    The connection is not protected: tunnel it (ssh -L) rather than opening it.
    """
    from learner.job_server import LocalTrainingService, start_server
    from policies.keys import ensure_key

    if not address.startswith(("unix:", "127.0.0.1:", "localhost:", "[::1]:")):
        raise UsageError(f"{address!r} is neither unix:/path nor loopback; tunnel to it with ssh -L instead")
    stop = threading.Event()
    with disk_errors(root):
        ensure_key(keys_dir(keys))
        service = LocalTrainingService(root, keys_dir(keys), trust_dir(trust, keys), nice=nice)
        try:
            server = start_server(service, address)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: stop.set())
            say(f"training service at {address}, jobs in {root}; stop it with Ctrl-C")
            stop.wait()
            server.stop(grace=2).wait()
        finally:
            service.stop()


@jobs.command(
    epilog="\b\nExample:\n  ratchet jobs submit --store episodes --parent out/champion --set steps=1200"
)
@_server_option
@click.option("--store", type=PATH, required=True, help="The episode store, as the service sees it.")
@click.option("--where", default="", help="SQL condition over its catalogue.")
@click.option("--parent", type=PATH, help="Fine-tune this bundle; corrected episodes are the corrections.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="As for `ratchet train`.")
@click.option("--config", type=PATH, help="Settings as a TOML file.")
@click.option("--key", help="The same key gives the same job, however often it is submitted.")
@click.option("--watch", is_flag=True, help="Wait for its end.")
@json_flag
def submit(server: str, store: Path, where: str, parent: Path | None, settings: tuple[str, ...],
           config: Path | None, key: str | None, watch: bool, as_json: bool) -> None:  # fmt: skip
    """Queue a training job. Exit code 1 when a watched one fails."""
    from tools.settings import train_config

    chosen = train_config(read_toml(config) if config else {}, settings)
    with TrainingClient(server) as client:
        status = client.submit(
            chosen,
            store.absolute(),
            where,
            parent=parent.absolute() if parent else None,
            key=key or secrets.token_hex(8),
        )
        _remember(server, status.id)
        say(f"job {status.id}")
        if watch:
            status = _watch(client, status.id)
    _show(status, as_json)


@jobs.command(epilog="\b\nExample:\n  ratchet jobs watch 1a2b3c4d5e6f7a8b")
@click.argument("job")
@_server_option
@json_flag
def watch(job: str, server: str, as_json: bool) -> None:
    """Wait for the end of a job. Exit code 1 when it fails."""
    with TrainingClient(server) as client:
        status = _watch(client, job)
    _show(status, as_json)


@jobs.command(epilog="\b\nExample:\n  ratchet jobs ls")
@_server_option
@json_flag
def ls(server: str, as_json: bool) -> None:
    """List the jobs submitted from here to that service, the newest last."""
    rows = []
    with TrainingClient(server) as client:
        for job in _remembered(server):
            try:
                rows.append(asdict(client.get(job)))
            except JobError as error:
                if "no job" not in error.what:
                    raise
                rows.append({"id": job, "state": "forgotten", "detail": "the service does not know it"})
    if as_json:
        show_json(rows)
    elif rows:
        columns = ["id", "state", ">step", ">steps", ">loss", "bundle_version", "detail"]
        show_table(columns, [[row.get(c.lstrip(">")) for c in columns] for row in rows])
    else:
        say(f"no job was submitted from here to {server}")


@jobs.command(epilog="\b\nExample:\n  ratchet jobs cancel 1a2b3c4d5e6f7a8b")
@click.argument("job")
@_server_option
@json_flag
def cancel(job: str, server: str, as_json: bool) -> None:
    """Stop a job."""
    with TrainingClient(server) as client:
        status = client.cancel(job)
    if as_json:
        show_json(asdict(status))
    else:
        click.echo(f"job {status.id} is {status.state}")


@jobs.command(epilog="\b\nExample:\n  ratchet jobs fetch 1a2b3c4d5e6f7a8b --out out/bundle")
@click.argument("job")
@click.option("--out", type=PATH, required=True, help="Where the bundle goes; must not exist.")
@_server_option
@keys_option
@trust_option
def fetch(job: str, out: Path, server: str, keys: Path | None, trust: Path | None) -> None:
    """Bring a finished job's bundle here; it is verified like any other."""
    trusted = TrustStore.load(trust_dir(trust, keys))
    with disk_errors(out.parent), TrainingClient(server) as client:
        bundle = client.fetch(job, out, trusted)
    click.echo(f"{bundle.version} in {out}")
    say(f"next: ratchet model add {out}")


def _watch(client: TrainingClient, job: str) -> JobStatus:
    from tools.progress import bar

    first = client.get(job)
    with bar(f"job {job}", max(1, first.steps), "steps") as update:

        def progress(status: JobStatus) -> None:
            update(status.step, f"{status.state}, loss {status.loss:.4f}", status.steps)

        return client.watch(job, progress)


def _show(status: JobStatus, as_json: bool) -> None:
    if as_json:
        show_json(asdict(status))
    else:
        what = f", bundle {status.bundle_version}" if status.bundle_version else ""
        click.echo(f"job {status.id} is {status.state}{what}{': ' + status.detail if status.detail else ''}")
    if status.state in ("failed", "cancelled"):
        raise SystemExit(1)
    if status.state == "succeeded":
        say(f"next: ratchet jobs fetch {status.id} --out DIR")


def _record() -> Path:
    return registries_dir() / "jobs.jsonl"


def _remember(server: str, job: str) -> None:
    """Services keep no list; whoever submits does."""
    if job in _remembered(server):
        return
    path = _record()
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps({"server": server, "job": job}) + "\n")


def _remembered(server: str) -> list[str]:
    path = _record()
    if not path.exists():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [row["job"] for row in rows if row["server"] == server]
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{path} is damaged; move it away (jobs themselves are not in it)") from None
