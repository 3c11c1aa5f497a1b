"""`ratchet serve`: a policy server in the foreground."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from policy_server.config import BACKENDS, ServerConfig, load_config, make_config
from tools.console import say
from tools.errors import UsageError
from tools.options import PATH, keys_option, trust_option
from tools.paths import registries_dir, trust_dir

EXAMPLES = """
\b
Examples:
  ratchet serve out/bundle
  ratchet serve out/bundle --address unix:/run/ratchet/policy.sock --backend onnx-int8
  ratchet serve --config /etc/ratchet/policy-server.toml
"""
ADDRESS = "127.0.0.1:50061"


@click.command(epilog=EXAMPLES)
@click.argument("bundle", type=PATH, required=False)
@click.option("--config", type=PATH, help="Everything from this TOML file instead: how systemd starts it.")
@click.option("--address", default=ADDRESS, show_default=True, help="unix:/path, or a loopback host:port.")
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
    backend: str,
    threads: int,
    allow: tuple[Path, ...],
    keys: Path | None,
    trust: Path | None,
) -> None:
    """Serve BUNDLE over gRPC until Ctrl-C.

    The address never leaves this machine: the connection is not protected.
    """
    import uvloop

    from policy_server.server import serve as run

    if config is not None:
        settings = load_config(config)
    elif bundle is not None:
        settings = _from_options(bundle, address, backend, threads, allow, trust_dir(trust, keys))
    else:
        raise UsageError("nothing to serve: name a BUNDLE directory, or a --config file")
    # It tells what it serves, where, and each swap: nothing else would be said until Ctrl-C.
    logging.getLogger("policy_server").setLevel(logging.INFO)
    say(f"loading {settings.bundle or 'no bundle yet'} ({settings.backend}); stop with Ctrl-C")
    uvloop.run(run(settings))


def _from_options(
    bundle: Path, address: str, backend: str, threads: int, allow: tuple[Path, ...], trust: Path
) -> ServerConfig:
    return make_config(
        {
            "address": address,
            "bundle": bundle,
            "trust": trust,
            "backend": backend,
            "threads": threads,
            "allowed_roots": (bundle.absolute().parent, registries_dir(), *allow),
        },
        "command line",
    )
