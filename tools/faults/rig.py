"""A robot that faults are done to: real processes, the real drivers, the bench for hardware.

The bench is no child of the robot's service, so that it survives and judges whatever dies. The policy
server is reached through a proxy over TCP, as a remote one would be. Where mosquitto is installed there
is a broker too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hal.bench.launch import start_bench
from runtime.config import RobotConfig
from runtime.guard import GuardLimits
from runtime.remote.client import RobotClient
from tools.children import Child, deaf_to_interrupts
from tools.config import load
from tools.faults.broker import Broker, find_mosquitto
from tools.faults.processes import processes
from tools.faults.proxy import Proxy
from tools.ports import free_port, listens
from tools.robot_file import SimOptions, SimPaths, sim_text

NAME = "victim"
SIZE = 32
_START_S = 60.0
_STOP_S = 45.0  # the arm is let down first


@dataclass(frozen=True, slots=True)
class Served:
    """The policy that the rig serves: a signed bundle and the directory of its public key."""

    bundle: Path
    trust: Path


class Rig:
    """Bench, `ratchet up --config`, policy server behind a proxy, broker, health page, below ``directory``.

    ``program`` is the module that is `ratchet`, ``env`` is added to what the service and its processes
    inherit. ``policy`` None leaves the policy server out. Raises UsageError when something cannot start.
    """

    def __init__(
        self,
        directory: Path,
        policy: Served | None,
        *,
        program: str = "tools.cli",
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.paths = SimPaths(directory.resolve())
        self.log = directory / "up.log"
        self._policy = policy
        self._program, self._env = program, env
        self._health_port = free_port()
        self._server_port = free_port()
        self.server: Child | None = None
        with contextlib.ExitStack() as stack:
            self.broker = Broker(directory / "broker") if find_mosquitto() is not None else None
            if self.broker is not None:
                self.broker.start()
                stack.callback(self.broker.stop)
            self.proxy = Proxy(directory / "policy.sock", self._server_port)
            if policy is not None:
                self.proxy.start()
                stack.callback(self.proxy.stop)
                self.start_policy_server()
                stack.callback(lambda: self.server and self.server.stop())
            with deaf_to_interrupts():
                bench = stack.enter_context(start_bench(self.paths.bench, 0, SIZE, SIZE))
            self.bench = bench.client
            self.paths.config.write_text(sim_text(self.paths, bench.info, self._options()))
            self.robot = load(RobotConfig, self.paths.config)
            self.service = self._start()
            self._stack = stack.pop_all()

    @property
    def limits(self) -> GuardLimits:
        """What the robot's guard was told."""
        return self.robot.guard

    def _options(self) -> SimOptions:
        port = None if self.broker is None else self.broker.port
        host = None if port is None else "127.0.0.1"
        return SimOptions(NAME, health_port=self._health_port, fleet_host=host, fleet_port=port or 1883)

    def _start(self) -> Child:
        arguments = [
            self._program,
            "--verbose",
            "up",
            "--config",
            str(self.paths.config),
            "--die-with-parent",
        ]
        said = self.log.stat().st_size if self.log.exists() else 0
        service = Child("robot service", arguments, self.log, self._env)
        service.wait_until(lambda: f"robot {NAME} is up" in self.said(said), _START_S)
        return service

    def said(self, since: int = 0) -> str:
        """The service's log from byte ``since`` on."""
        return self.log.read_bytes()[since:].decode(errors="replace")

    def start_again(self) -> None:
        """After the service was killed: the same robot in the same place."""
        self.service = self._start()

    def start_policy_server(self) -> None:
        """As whoever watches over it does after it died."""
        assert self._policy is not None
        bundle = self._policy.bundle
        arguments = ["policy_server", "--address", f"127.0.0.1:{self._server_port}", "--plaintext"]
        arguments += ["--die-with-parent"]
        arguments += [
            "--trust",
            str(self._policy.trust),
            "--bundle",
            str(bundle),
            "--allow",
            str(bundle.parent),
        ]
        self.server = Child("policy server", arguments, self.directory / "policy_server.log")
        self.server.wait_until(lambda: listens(self._server_port))

    def stop(self) -> int:
        """Let the arm down, end everything; the exit status of `ratchet up`."""
        status = self.service.stop(_STOP_S)
        self._stack.close()
        return status

    def client(self, timeout_s: float = 3.0) -> RobotClient:
        """A new connection to the robot; use it as an async context manager."""
        return RobotClient(self.paths.control, timeout_s=timeout_s)

    # --- its processes ------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether the robot's service runs."""
        return self.service.process.poll() is None

    @property
    def pid(self) -> int:
        """The runtime: loop, recorder, remote doors."""
        return self.service.process.pid

    def bus_processes(self, arm: str = "follower") -> list[int]:
        """The process of one arm's bus; empty while there is none."""
        return processes("runtime.bus_process", str(self.directory), f"{arm}.config")

    def camera_processes(self) -> list[int]:
        """The process of the cameras; empty while there is none."""
        return processes("runtime.camera_process", str(self.directory))

    def robot_processes(self) -> list[int]:
        """The service and what it has started."""
        return [
            *processes("tools.cli", str(self.paths.config)),
            *processes("runtime.", str(self.paths.run_dir)),
        ]

    # --- what it says -------------------------------------------------------------------------------

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
        found: dict[str, str] = {}
        for episode in sorted((self.paths.store / "episodes").iterdir()):
            if episode.suffix != ".partial" and (episode / "episode.json").exists():
                sha = hashlib.sha256()
                for path in sorted(path for path in episode.rglob("*") if path.is_file()):
                    sha.update(str(path.relative_to(episode)).encode() + b"\0" + path.read_bytes())
                found[episode.name] = sha.hexdigest()
        return found
