"""`ratchet stop`: let the arm down, or stop it at once; nothing stands between an e-stop and the arm."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tools.emergency import beats, raise_word
from tools.errors import UsageError

if TYPE_CHECKING:  # gRPC takes longer to load than an e-stop may take
    from tools.robot_door import Door

_PATH = click.Path(path_type=Path)
_REASON = "ratchet stop at the command line"


@click.command(
    epilog="\b\nExamples:\n  ratchet stop\n  ratchet stop --emergency\n  ratchet stop --clear-emergency\n"
)
@click.option("--emergency", is_flag=True, help="Freeze at once and latch; nothing is let down.")
@click.option("--clear-emergency", is_flag=True, help="Unlatch it, having made sure that the arm is safe.")
@click.option("--address", help="unix:/path or host:port of the robot [default: the service's].")
@click.option("--dir", "run_dir", type=_PATH, help="Run directory of `ratchet up --sim`.")
@click.option("--tls", type=_PATH, help="Directory with client.pem, client.key and ca.pem.")
@click.option("--stamp", is_flag=True, hidden=True, help="Say first when it acts, monotonic ns.")
def stop(
    emergency: bool,
    clear_emergency: bool,
    address: str | None,
    run_dir: Path | None,
    tls: Path | None,
    stamp: bool,
) -> None:
    """Stop the arm: hold, let it down, release. Needs no control lease, waits for nobody.

    On the robot's own machine --emergency writes a word that the bus process looks at in every cycle,
    then tells the service; elsewhere it tells the service alone.
    """
    if emergency and clear_emergency:
        raise click.UsageError("--emergency and --clear-emergency contradict each other")
    acts_ns = time.monotonic_ns()
    written = raise_word(run_dir, address) if emergency else None
    if stamp:
        click.echo(acts_ns)
    if written is not None:
        click.echo(f"emergency stop raised in {written}")
    from runtime.remote.errors import RemoteError
    from tools.robot_door import make_door

    try:
        asyncio.run(_stop(make_door(address, run_dir, tls), emergency, clear_emergency))
    except RemoteError as error:
        if written is None:
            raise
        if not beats(written):
            raise UsageError(
                f"no robot runs there: the stop is latched in {written} for its next start; if an arm moves, "
                "it is another's, or its motors' own doing: cut its power"
            ) from None
        click.echo(f"the service was not told: {error}", err=True)


async def _stop(door: Door, emergency: bool, clear_emergency: bool) -> None:
    async with door.connect() as robot:
        if clear_emergency:
            async with robot.control("ratchet stop --clear-emergency") as control:
                await control.clear_estop()
            click.echo("the emergency stop is cleared; the arm stays as it is until it is enabled")
            return
        ack = await (robot.estop(_REASON) if emergency else robot.stop(_REASON))
        click.echo(f"{ack.detail}; mode {ack.mode}")
