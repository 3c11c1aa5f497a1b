"""How the robot's verbs find and hold a running robot service."""

from __future__ import annotations

import asyncio
import functools
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from protos.access.tls import Identity, identity_in
from runtime.remote.client import Control, RobotClient
from runtime.remote.config import RemoteConfig
from tools.errors import UsageError
from tools.options import PATH
from tools.robot_file import SimPaths

F = TypeVar("F", bound=Callable[..., Any])

_TIMEOUT_S = 30.0  # loading a bundle is the longest request


@dataclass(frozen=True, slots=True)
class Door:
    """Where a robot's gRPC door is; ``run_dir`` is set when it was named by its bench's directory."""

    address: str
    tls: Identity | None
    run_dir: Path | None

    def connect(self) -> RobotClient:
        """A connection; call it where an event loop runs. Raises CredentialsError."""
        return RobotClient(self.address, self.tls, _TIMEOUT_S)

    @property
    def paths(self) -> SimPaths:
        """Where the simulated robot's things are. Raises UsageError for a robot named by its address."""
        if self.run_dir is None:
            raise UsageError("only a bench has a scene to direct; name it with --dir RUN")
        return SimPaths(self.run_dir)


def robot_options(command: F) -> F:
    """``--address``, ``--dir`` and ``--tls``; the command gets one ``door``."""

    @functools.wraps(command)
    def with_door(
        *args: Any, address: str | None, run_dir: Path | None, tls: Path | None, **options: Any
    ) -> Any:
        return command(*args, door=make_door(address, run_dir, tls), **options)

    wrapped: Any = with_door
    default = RemoteConfig.model_fields["address"].default
    for option in (
        click.option("--tls", type=PATH, help="Directory that `ratchet keys issue` or `token` made."),
        click.option("--dir", "run_dir", type=PATH, help="Run directory of `ratchet up --sim`."),
        click.option("--address", help=f"unix:/path or host:port of the robot [default: {default}]."),
    ):
        wrapped = option(wrapped)
    return wrapped


def make_door(address: str | None, run_dir: Path | None, tls: Path | None) -> Door:
    """The door that these options name. Raises UsageError when they name two, and CredentialsError."""
    if address is not None and run_dir is not None:
        raise UsageError("--address and --dir name two robots; give one of them")
    files = None if tls is None else identity_in(tls)
    if run_dir is not None:
        run_dir = run_dir.resolve()
        return Door(SimPaths(run_dir).control, files, run_dir)
    return Door(address or str(RemoteConfig.model_fields["address"].default), files, None)


def run_until_interrupted(main: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    """Run ``main`` with an event that Ctrl-C or SIGTERM sets: the verb then ends in its own order."""

    async def with_signals() -> None:
        interrupted = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupted.set)
        await main(interrupted)

    asyncio.run(with_signals())


async def leave(robot: RobotClient, control: Control, mode: str, reason: str) -> None:
    """Let the arm down if it is still in ``mode``; one that stopped by itself stays as it is."""
    if control.lost is None and (await robot.state()).mode == mode:
        await robot.stop(reason)


def left_mode(mode: str, now: str, reason: str) -> UsageError:
    """What to say when the arm left the mode it was in."""
    ways = {
        "hold": "look, then run this again: it goes on from where it stands",
        "fault": "mend the cause, then run this again",
        "estop": "make it safe, then `ratchet stop --clear-emergency`",
        "off": "it was stopped and let down",
    }
    return UsageError(
        f"the arm left mode {mode} for {now} ({reason}); {ways.get(now, 'see `ratchet status`')}"
    )
