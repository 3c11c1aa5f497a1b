"""Run the robot service in this process: uvloop, signals, one line when it is up."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import uvloop

from policy_server.server import until_gone
from runtime.config import RobotConfig
from runtime.service import serve


def run_service(config: RobotConfig, ready: Callable[[str], None], parent: int | None = None) -> None:
    """Serve until SIGTERM or SIGINT, or until the process ``parent`` is gone.

    Raises what ``runtime.service.serve`` raises.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config, ready, parent))


async def _serve(config: RobotConfig, ready: Callable[[str], None], parent: int | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with until_gone(parent, stop):
        await serve(config, stop, software=software_version(), ready=ready)


def software_version() -> str:
    """Ratchet's own version, as episodes record it."""
    try:
        return version("ratchet")
    except PackageNotFoundError:
        return "unknown"
