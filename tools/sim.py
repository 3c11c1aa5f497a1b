"""A simulated robot for programs: `ratchet up --sim` as a process, and how to reach its parts.

::

    settings = SimSettings(bundle=Path("out/bundle"), trust=Path("out/keys"))
    with start_sim(Path("out/run"), settings) as sim:
        sim.bench.demonstrate(seed=1)
        async with sim.client() as robot, robot.control("demo") as control:
            await control.enable()
"""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from hal.bench.control import BenchClient
from runtime.remote.client import RobotClient
from tools.children import Child
from tools.robot_file import SimPaths

_STOP_S = 45.0  # the arm is let down first


@dataclass(slots=True)
class SimRobot:
    """A running simulated robot; a context manager that stops it.

    ``bench`` directs the scene (``BenchClient``). The process's log is ``log``.
    """

    paths: SimPaths
    process: Child
    bench: BenchClient

    @property
    def address(self) -> str:
        """The robot's gRPC door."""
        return self.paths.control

    @property
    def policy_address(self) -> str:
        """Where its policy server listens, when there is one."""
        return self.paths.policy

    @property
    def store_path(self) -> Path:
        return self.paths.store

    @property
    def config_path(self) -> Path:
        return self.paths.config

    @property
    def log(self) -> Path:
        return self.process.log

    def client(self, timeout_s: float = 10.0) -> RobotClient:
        """A new connection to the robot; use it as an async context manager."""
        return RobotClient(self.address, timeout_s=timeout_s)

    def stop(self) -> int:
        """Let the arm down, end everything; the exit status of `ratchet up`. Safe to call twice."""
        self.bench.close()
        return self.process.stop(_STOP_S)

    def kill(self) -> None:
        """End `ratchet up` as a power cut would: SIGKILL. Its children notice and end by themselves."""
        self.process.process.send_signal(signal.SIGKILL)
        self.process.process.wait()
        self.bench.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclass(frozen=True, slots=True, kw_only=True)
class SimSettings:
    """What a simulated robot is started with; a policy server is, with ``bundle`` or ``allow``.

    ``trust`` holds the public keys whose bundles are accepted, ``allow`` further directories that
    bundles may be loaded from, ``fallback`` the bundle the robot serves itself when that server is gone.
    ``broker`` is HOST:PORT of a local MQTT broker, ``keys`` the key directory whose holder may command
    the robot over it (default: ``run_dir/keys``, made there).
    With ``ensemble`` the policy is asked in every tick and its answers are averaged (ACT's decay).
    ``threads`` and the real-time ``priority`` are those of an inference.
    With ``prerendered`` the cameras play a scene that is drawn once. ``keep_last_s`` seconds are held while
    nothing is recorded.
    """

    bundle: Path | None = None
    allow: Sequence[Path] = ()
    fallback: Path | None = None
    ensemble: float | None = None
    trust: Path | None = None
    backend: str = "onnx"
    threads: int = 1
    priority: int = 0
    seed: int = 0
    size: tuple[int, int] = (96, 96)
    name: str = "bench"
    broker: str | None = None
    keys: Path | None = None
    health: int | None = None
    prerendered: bool = False
    keep_last_s: float = 0.0

    def arguments(self) -> list[str]:
        """As `ratchet up --sim` takes them; paths absolute."""
        width, height = self.size
        arguments = ["--seed", str(self.seed), "--size", f"{width}x{height}", "--name", self.name]
        arguments += ["--backend", self.backend, "--threads", str(self.threads)]
        arguments += ["--priority", str(self.priority), "--keep-last", str(self.keep_last_s)]
        optional = {
            "--bundle": self.bundle,
            "--fallback": self.fallback,
            "--ensemble": self.ensemble,
            "--trust": self.trust,
            "--broker": self.broker,
            "--keys": self.keys,
            "--health": self.health,
        }
        for option, value in optional.items():
            if value is not None:
                arguments += [option, str(value.resolve() if isinstance(value, Path) else value)]
        if self.prerendered:
            arguments.append("--prerendered")
        for root in self.allow:
            arguments += ["--allow", str(root.resolve())]
        return arguments


def start_sim(run_dir: Path, settings: SimSettings | None = None, *, timeout_s: float = 120.0) -> SimRobot:
    """Start bench, policy server (with bundles) and robot below ``run_dir``; return when they are up.

    Everything ends when this process does. Raises UsageError with the service's own line when it
    cannot start.
    """
    paths = SimPaths(run_dir.resolve())
    paths.run_dir.mkdir(parents=True, exist_ok=True)
    arguments = ["tools.cli", "--verbose", "up", "--sim", "--dir", str(paths.run_dir), "--die-with-parent"]
    arguments += (settings or SimSettings()).arguments()
    process = Child("robot service", arguments, paths.run_dir / "up.log")
    try:
        process.wait_until(lambda: _ready_pid(paths) == process.process.pid, timeout_s)
        bench = BenchClient(paths.bench / "bench.sock")
    except BaseException:
        process.stop()
        raise
    return SimRobot(paths, process, bench)


def _ready_pid(paths: SimPaths) -> int:
    """The service that says it is up; 0 when none does."""
    try:
        return int(json.loads(paths.ready.read_text())["pid"])
    except FileNotFoundError:
        return 0
