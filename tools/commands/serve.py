"""`ratchet serve`: a policy server in the foreground."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from policy_server.config import BACKENDS, make_config
from tools.console import say
from tools.options import PATH, keys_option, trust_option
from tools.paths import registries_dir, trust_dir

EXAMPLES = """
\b
Examples:
  ratchet serve out/bundle
  ratchet serve out/bundle --address unix:/run/ratchet/policy.sock --backend onnx-int8
"""
ADDRESS = "127.0.0.1:50061"


@click.command(epilog=EXAMPLES)
@click.argument("bundle", type=PATH)
@click.option("--address", default=ADDRESS, show_default=True, help="unix:/path, or a loopback host:port.")
@click.option("--backend", type=click.Choice(BACKENDS), default="onnx", show_default=True)
@click.option("--threads", type=click.IntRange(1, 64), default=1, show_default=True)
@click.option("--allow", type=PATH, multiple=True, help="A directory bundles may be loaded from later on; "
              "repeatable. Always: the one BUNDLE is in, and the registries.")  # fmt: skip
@keys_option
@trust_option
def serve(
    bundle: Path,
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

    config = make_config(
        {
            "address": address,
            "bundle": bundle,
            "trust": trust_dir(trust, keys),
            "backend": backend,
            "threads": threads,
            "allowed_roots": (bundle.absolute().parent, registries_dir(), *allow),
        },
        "command line",
    )
    # It tells what it serves, where, and each swap: nothing else would be said until Ctrl-C.
    logging.getLogger("policy_server").setLevel(logging.INFO)
    say(f"loading {bundle} ({backend}); stop with Ctrl-C")
    uvloop.run(run(config))
