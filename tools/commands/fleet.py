"""`ratchet fleet`: signed commands to robots over MQTT, and who is there."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from policies.keys import ensure_key
from protos.access.tls import is_local
from runtime.fleet.client import FleetClient, watch_presence
from runtime.fleet.config import FleetConfig
from runtime.fleet.operations import OPERATIONS
from tools.config import parse
from tools.console import show_json
from tools.errors import UsageError
from tools.options import PATH, FiniteRange, json_flag, keys_option
from tools.paths import keys_dir

F = TypeVar("F", bound=Callable[..., Any])

EXAMPLES = """
\b
Examples:
  ratchet fleet watch --broker 127.0.0.1:1883 --site sim
  ratchet fleet send bench status --broker 127.0.0.1:1883 --site sim
  ratchet fleet send bench start_episode task="put the cube in the zone"
"""


@click.group(epilog=EXAMPLES)
def fleet() -> None:
    """Command robots over MQTT, and watch them."""


def _broker_options(command: F) -> F:
    command = click.option("--site", default="home", show_default=True, help="The robots' site.")(command)
    command = click.option(
        "--tls",
        type=PATH,
        help="Directory with client.pem, client.key and ca.pem; a must beyond this machine.",
    )(command)
    return click.option(
        "--broker", default="127.0.0.1:1883", show_default=True, help="HOST:PORT of the MQTT broker."
    )(command)


@fleet.command(epilog=EXAMPLES)
@click.argument("robot")
@click.argument("op", type=click.Choice(sorted(OPERATIONS)))
@click.argument("arguments", nargs=-1, metavar="[NAME=VALUE]...")
@click.option("--lifetime", type=FiniteRange(1.0, 300.0), default=30.0, show_default=True, help="Seconds.")
@_broker_options
@keys_option
@json_flag
def send(
    robot: str,
    op: str,
    arguments: tuple[str, ...],
    lifetime: float,
    broker: str,
    tls: Path | None,
    site: str,
    keys: Path | None,
    as_json: bool,
) -> None:
    """Send OP to ROBOT, signed with one's key, and wait for what came of it."""
    pair = ensure_key(keys_dir(keys))
    config = _config(broker, tls)
    given = _arguments(arguments)

    async def command() -> dict[str, Any]:
        async with FleetClient(config, site, key=pair.id, signer=pair.sign) as client:
            reply = await client.send(robot, op, given, lifetime_s=lifetime)
            return dict(msgspec.to_builtins(reply))

    reply = asyncio.run(command())
    if as_json:
        show_json(reply)
    else:
        result = " ".join(f"{name}={value}" for name, value in (reply.get("result") or {}).items())
        click.echo(" ".join(part for part in (reply["state"], reply.get("detail", ""), result) if part))
    if reply["state"] != "SUCCEEDED":
        raise SystemExit(1)


@fleet.command(epilog="\b\nExample:\n  ratchet fleet watch --broker 127.0.0.1:1883 --site sim\n")
@click.option("--seconds", type=FiniteRange(min=0.1), help="End by itself [default: at Ctrl-C].")
@_broker_options
@json_flag
def watch(seconds: float | None, broker: str, tls: Path | None, site: str, as_json: bool) -> None:
    """Show each robot as it comes, goes or is lost."""
    config = _config(broker, tls)

    async def follow() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                async for seen in watch_presence(config, site):
                    row = {"robot": seen.robot, **msgspec.to_builtins(seen.status)}
                    clock = time.strftime("%H:%M:%S")
                    line = f"{clock} {seen.robot} {seen.status.state.lower()} {seen.status.software}"
                    click.echo(msgspec.json.encode(row).decode() if as_json else line)

    asyncio.run(follow())


def _config(broker: str, tls: Path | None) -> FleetConfig:
    host, _, port = broker.rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"--broker {broker!r} is not HOST:PORT, such as 127.0.0.1:1883")
    data: dict[str, Any] = {"host": host, "port": int(port), "plaintext": tls is None}
    if tls is not None:
        data["tls"] = {"certificate": tls / "client.pem", "key": tls / "client.key", "ca": tls / "ca.pem"}
    elif not is_local(broker):
        raise UsageError(f"the broker {broker} is not on this machine; give --tls DIR with its certificates")
    return parse(FleetConfig, data, "--broker")


def _arguments(given: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for argument in given:
        name, equals, value = argument.partition("=")
        if not equals or not name:
            raise UsageError(f"{argument!r} is not NAME=VALUE, such as reason=lunch")
        found[name] = value
    return found
