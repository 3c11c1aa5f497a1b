"""A simulated robot that faults are done to, and what is looked at meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np

from hal.types import Vector
from runtime.remote.client import Control, RobotClient
from tests.runtime.broker import Broker
from tests.tiny_policy import SIZE, Policies
from tests.tools.acting import processes
from tools.children import Child
from tools.sim import SimRobot, start_sim

NAME = "victim"
TIMEOUT_S = 30.0


class Rig:
    """`ratchet up --sim` with a policy server, a broker (or None) and a health page."""

    def __init__(self, directory: Path, policies: Policies, broker: Broker | None) -> None:
        self._directory = directory
        self._policies = policies
        self.broker = broker
        self._health_port = free_port()
        self._server: Child | None = None
        self.sim = self._start()

    def _start(self) -> SimRobot:
        return start_sim(
            self._directory,
            bundle=self._policies.first.path,
            trust=self._policies.trust,
            size=(SIZE, SIZE),
            name=NAME,
            broker=None if self.broker is None else f"127.0.0.1:{self.broker.port}",
            health=self._health_port,
        )

    def start_again(self) -> None:
        """After the service was killed: the same robot in the same place."""
        self.sim = self._start()

    def start_policy_server(self) -> None:
        """As its supervisor does after it died."""
        address = self.sim.policy_address
        bundle = self._policies.first.path
        arguments = ["policy_server", "--address", address, "--trust", str(self._policies.trust)]
        arguments += ["--bundle", str(bundle), "--allow", str(bundle.parent), "--die-with-parent"]
        self._server = Child("policy server", arguments, self._directory / "policy_server_2.log")
        self._server.wait_for_socket(Path(address.removeprefix("unix:")))

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
        self.sim.stop()

    def processes(self) -> list[int]:
        """The robot's processes, without the policy server that was started separately."""
        own = set() if self._server is None else {self._server.process.pid}
        return [pid for pid in processes(str(self._directory)) if pid not in own]

    def health(self) -> dict[str, Any]:
        """Subsystem → {ok, detail} as /healthz shows it."""
        address = f"http://127.0.0.1:{self._health_port}/healthz"
        try:
            with urllib.request.urlopen(address, timeout=5.0) as answer:
                body = answer.read()
        except urllib.error.HTTPError as error:  # 503: not everything is well
            body = error.read()
        subsystems: dict[str, Any] = json.loads(body)["subsystems"]
        return subsystems

    def digests(self) -> dict[str, str]:
        """Published episode → one hash over the bytes of all its files."""
        found = {}
        for episode in sorted((self.sim.store_path / "episodes").iterdir()):
            if (episode / "episode.json").exists():
                sha = hashlib.sha256()
                for path in sorted(path for path in episode.rglob("*") if path.is_file()):
                    sha.update(str(path.relative_to(episode)).encode() + b"\0" + path.read_bytes())
                found[episode.name] = sha.hexdigest()
        return found


def free_port() -> int:
    """A loopback port nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait until ``condition`` holds; it may block for a moment."""
    deadline = time.monotonic() + TIMEOUT_S
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, f"not in {TIMEOUT_S:g} s: {what}"
        await asyncio.sleep(0.05)


async def until_seen(condition: Callable[[], Awaitable[object]], what: str) -> None:
    """Wait until an awaited ``condition`` holds."""
    deadline = time.monotonic() + TIMEOUT_S
    while not await condition():
        assert time.monotonic() < deadline, f"not in {TIMEOUT_S:g} s: {what}"
        await asyncio.sleep(0.05)


async def goals(robot: RobotClient, seconds: float = 1.0) -> Vector:
    """What was let through to the motors meanwhile, rad (n, 6)."""
    seen = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        seen.append(list((await robot.state()).goal))
        await asyncio.sleep(0.03)
    return np.array(seen)


async def drives(robot: RobotClient, seconds: float = 1.0) -> bool:
    """Whether the goals change: the policy's do with every noisy picture."""
    return bool(np.ptp(await goals(robot, seconds), axis=0).max() > 1e-6)


async def positions(robot: RobotClient, seconds: float = 1.0) -> Vector:
    """Where the arm was meanwhile, rad (n, 6)."""
    seen = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        seen.append(list((await robot.state()).position))
        await asyncio.sleep(0.03)
    return np.array(seen)


async def record(rig: Rig, control: Control, seconds: float = 0.7) -> str:
    """Record and publish a short episode; its id."""
    before = rig.digests()
    started = await control.start_episode("stand still")
    await asyncio.sleep(seconds)
    await control.end_episode("success", "recorded")
    await until(lambda: started.id in rig.digests(), "the episode is published")
    assert started.id not in before
    return str(started.id)


class Pace:
    """Ticks and misses of the loop between entering and ``check``."""

    def __init__(self, robot: RobotClient) -> None:
        self._robot = robot

    async def __aenter__(self) -> Pace:
        self._loop = (await self._robot.state()).loop
        self._began = time.monotonic()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return
        loop, seconds = (await self._robot.state()).loop, time.monotonic() - self._began
        ticks, missed = loop.ticks - self._loop.ticks, loop.missed - self._loop.missed
        assert ticks + missed > 25.0 * seconds, f"{ticks} ticks and {missed} missed in {seconds:.1f} s"
        assert missed <= 0.2 * ticks, f"{missed} of {ticks} ticks missed"  # a busy machine misses some
