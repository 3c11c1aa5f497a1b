"""`ratchet serve`: a policy server in the foreground."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from policy_server.config import BACKENDS, ServerConfig, load_config, make_config
from tools.console import say
from tools.errors import UsageError
from tools.options import PATH, keys_option, trust_option
from tools.paths import registries_dir, standing_file, trust_dir

EXAMPLES = """
\b
Examples:
  ratchet serve out/bundle --plaintext
  ratchet serve out/bundle --address 0.0.0.0:50061 --tls ~/.config/ratchet/keys/server
  ratchet serve out/bundle --address unix:/run/ratchet/policy.sock --backend onnx-int8
  ratchet serve --config /etc/ratchet/policy-server.toml
"""
ADDRESS = "127.0.0.1:50061"


@click.command(epilog=EXAMPLES)
@click.argument("bundle", type=PATH, required=False)
@click.option("--config", type=PATH, help="Everything from this TOML file instead: how systemd starts it.")
@click.option("--address", default=ADDRESS, show_default=True, help="unix:/path, or host:port.")
@click.option("--tls", type=PATH, help="Directory with server.pem, server.key, ca.pem (`ratchet keys init`).")
@click.option("--people", metavar="HOST:PORT", help="With --tls: a second door for people with tokens.")
@click.option("--revoked", type=PATH, help="The authority's list of what counts no more.")
@click.option(
    "--plaintext", is_flag=True, help="No encryption, on a loopback address: anyone on this machine."
)
@click.option("--backend", type=click.Choice(BACKENDS), default="onnx", show_default=True)
@click.option("--threads", type=click.IntRange(1, 64), default=1, show_default=True)
@click.option("--allow", type=PATH, multiple=True, help="A directory bundles may be loaded from later on; "
              "repeatable. Always: the one BUNDLE is in, and the registries.")  # fmt: skip
@keys_option
@trust_option
def serve(
    bundle: Path | None,
    config: Path | None,
    address: str,
    tls: Path | None,
    people: str | None,
    revoked: Path | None,
    plaintext: bool,
    backend: str,
    threads: int,
    allow: tuple[Path, ...],
    keys: Path | None,
    trust: Path | None,
) -> None:
    """Serve BUNDLE over gRPC until Ctrl-C.

    Over a unix socket; over TCP with certificates (--tls); or, only if asked for, in plaintext on loopback.
    """
    import uvloop

    from policy_server.server import serve as run

    if config is not None:
        settings = load_config(config)
    elif bundle is not None:
        given = {"address": address, "backend": backend, "threads": threads}
        access = _access(address, tls, people, revoked, plaintext)
        settings = _from_options(bundle, {**given, **access}, allow, trust_dir(trust, keys))
    else:
        raise UsageError("nothing to serve: name a BUNDLE directory, or a --config file")
    # It tells what it serves, where, and each swap: nothing else would be said until Ctrl-C.
    logging.getLogger("policy_server").setLevel(logging.INFO)
    say(f"loading {settings.bundle or 'no bundle yet'} ({settings.backend}); stop with Ctrl-C")
    uvloop.run(run(settings))


def _access(
    address: str, tls: Path | None, people: str | None, revoked: Path | None, plaintext: bool
) -> dict[str, Any]:
    """The part of the configuration that says who may come in."""
    if people is not None and tls is None:
        raise UsageError("--people needs --tls: a token must not travel in the open")
    if tls is None:
        if not plaintext and not address.startswith("unix:"):
            raise UsageError(f"{address} needs --tls DIR, or on loopback --plaintext")
        return {"plaintext": True, "revoked": revoked}
    if plaintext:
        raise UsageError("--tls and --plaintext contradict each other; give one of them")
    files = {"certificate": tls / "server.pem", "key": tls / "server.key", "ca": tls / "ca.pem"}
    door = None if people is None else {"address": people, "tokens": tls / "tokens.pub"}
    return {"tls": files, "people": door, "revoked": revoked}


def _from_options(bundle: Path, given: dict[str, Any], allow: tuple[Path, ...], trust: Path) -> ServerConfig:
    roots = (bundle.absolute().parent, registries_dir(), *allow)
    paths = {
        "bundle": bundle,
        "trust": trust,
        "allowed_roots": roots,
        "state": standing_file(str(given["address"])),
        "resume": False,  # whoever names a bundle here means that one
    }
    return make_config({**given, **paths}, "command line")
