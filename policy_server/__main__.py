"""``python -m policy_server``: serve a bundle until told to stop."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

import uvloop

from policy_server.config import BACKENDS, ServerConfig, load_config, make_config
from policy_server.errors import ServerError
from policy_server.server import serve


def main(argv: list[str] | None = None) -> int:
    """Exit status 0 after an orderly stop, 2 when the server cannot start (one line on stderr)."""
    args = _parser().parse_args(argv)
    parent = os.getppid() if args.die_with_parent else None
    logging.basicConfig(level=args.log.upper(), format="%(levelname)s %(name)s %(message)s")
    try:
        uvloop.run(serve(_config(args), parent))
    except ServerError as error:
        sys.stderr.write(f"policy server: {error}\n")
        return 2
    return 0


def _config(args: argparse.Namespace) -> ServerConfig:
    given: dict[str, object] = {
        "address": args.address,
        "bundle": args.bundle,
        "trust": args.trust,
        "backend": args.backend,
        "threads": args.threads,
        "priority": args.priority,
        "allowed_roots": tuple(args.allow) or None,
        "plaintext": True if args.plaintext else None,
    }
    if args.config is not None:
        return load_config(args.config, **given)
    return make_config({k: v for k, v in given.items() if v is not None}, "command line")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m policy_server",
        description="Serve action chunks over gRPC on this machine.",
        epilog="example: python -m policy_server --address unix:/run/ratchet/policy.sock "
        "--bundle bundles/champion --trust keys",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML; options below override it")
    parser.add_argument("--address", help="unix:/path or host:port")
    parser.add_argument("--plaintext", action="store_true", help="no encryption, on a loopback address")
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="bundle to serve from the start")
    parser.add_argument("--trust", type=Path, metavar="DIR", help="public keys whose bundles are accepted")
    parser.add_argument("--backend", choices=BACKENDS)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--priority", type=int, help="real-time, 1 to 9, for inference in every tick")
    parser.add_argument("--allow", type=Path, action="append", default=[], metavar="DIR",
                        help="directory bundles may be loaded from (repeatable)")  # fmt: skip
    parser.add_argument("--die-with-parent", action="store_true", help="stop when the starting process ends")
    parser.add_argument("--log", default="info", choices=("debug", "info", "warning", "error"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
