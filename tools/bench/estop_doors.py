"""The doors an e-stop comes through, each pulled as its user pulls it.

A door returns when it was pulled, monotonic ns: from when it is counted. The command line has two such
moments: when the shell starts the process, and when the process has come to act.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

from policies.keys import ensure_key
from runtime.fleet.client import FleetClient
from runtime.fleet.config import FleetConfig
from runtime.remote.client import RobotClient
from tools.errors import UsageError
from tools.sim import SimRobot

SITE = "sim"
_ROOT = Path(__file__).resolve().parents[2]
_ANSWER_S = 20.0

Pulled = Mapping[str, int]
Door = Callable[[], Awaitable[Pulled]]


@contextlib.asynccontextmanager
async def open_doors(
    sim: SimRobot, name: str, broker_port: int | None, health_port: int
) -> AsyncIterator[dict[str, Door]]:
    """The doors of a running robot by name, connections made; without a broker there is no ``mqtt``."""
    async with contextlib.AsyncExitStack() as stack:
        robot = await stack.enter_async_context(sim.client())
        await robot.state()
        doors: dict[str, Door] = {
            "cli": lambda: _cli(sim),
            "grpc": lambda: _grpc(robot),
            "web": lambda: _web(health_port),
        }
        if broker_port is not None:
            key = ensure_key(sim.paths.run_dir / "keys")
            config = FleetConfig(host="127.0.0.1", port=broker_port, plaintext=True)
            fleet = FleetClient(config, SITE, key=key.id, signer=key.sign)
            await stack.enter_async_context(fleet)
            doors["mqtt"] = lambda: _mqtt(fleet, name)
        yield doors


async def _cli(sim: SimRobot) -> Pulled:
    """`ratchet stop --emergency`, which says when it acted."""
    started = time.monotonic_ns()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tools.cli", "stop", "--emergency", "--stamp"),
        *("--dir", str(sim.paths.run_dir)),
        cwd=_ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await asyncio.wait_for(process.communicate(), _ANSWER_S)
    acted = int(said.split(b"\n", 1)[0])
    return {"cli": acted, "cli_from_process_start": started}


async def _grpc(robot: RobotClient) -> Pulled:
    pulled = time.monotonic_ns()
    await robot.estop("bench")
    return {"grpc": pulled}


async def _mqtt(fleet: FleetClient, name: str) -> Pulled:
    pulled = time.monotonic_ns()
    reply = await fleet.send(name, "estop")
    if reply.state != "SUCCEEDED":
        raise UsageError(f"the e-stop over MQTT came back as {reply.state}: {reply.detail}")
    return {"mqtt": pulled}


async def _web(port: int) -> Pulled:
    """The page's button: a connection of its own, as a browser may open one."""
    pulled = time.monotonic_ns()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"POST /estop HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nx-ratchet: estop\r\n\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), _ANSWER_S)
    writer.close()
    if b" 200 " not in answer.split(b"\r\n", 1)[0]:
        raise UsageError(f"the web page did not stop the arm: {answer[:80]!r}")
    return {"web": pulled}


class Terminal:
    """`ratchet run` in a terminal of its own: it drives the arm until the space bar is pressed."""

    def __init__(self, sim: SimRobot) -> None:
        self._sim = sim
        self._ours = -1
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Return when the verb drives."""
        self._ours, theirs = pty.openpty()
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tools.cli", "run", "--dir", str(self._sim.paths.run_dir)),
            cwd=_ROOT,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        os.set_blocking(self._ours, False)
        deadline, seen = time.monotonic() + _ANSWER_S, b""
        while b"drives the arm" not in seen:
            if time.monotonic() > deadline or self._process.returncode is not None:
                raise UsageError(f"`ratchet run` does not drive: {seen[-200:].decode(errors='replace')}")
            with contextlib.suppress(BlockingIOError, OSError):
                seen += os.read(self._ours, 4096)
            await asyncio.sleep(0.02)

    async def press(self) -> Pulled:
        """The space bar."""
        pulled = time.monotonic_ns()
        os.write(self._ours, b" ")
        return {"keyboard": pulled}

    async def stop(self) -> None:
        """Return when the verb has ended; it ends by itself once the arm has stopped."""
        if self._process is None:
            return
        try:
            await asyncio.wait_for(self._drain(self._process), _ANSWER_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            os.close(self._ours)
            self._process = None

    async def _drain(self, process: asyncio.subprocess.Process) -> None:
        """A terminal nobody reads would fill up and hold the verb."""
        while process.returncode is None:
            with contextlib.suppress(BlockingIOError, OSError):
                os.read(self._ours, 4096)
            await asyncio.sleep(0.02)
