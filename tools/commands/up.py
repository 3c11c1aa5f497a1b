"""`ratchet up`: the robot service, on a real arm or on the simulated bench."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import FrameType

import click

from runtime.config import RobotConfig
from runtime.exclusive import exclusive
from tools.children import Child, deaf_to_interrupts
from tools.config import load
from tools.errors import UsageError
from tools.options import FiniteRange
from tools.robot_file import SimOptions, SimPaths, sim_text
from tools.serving import run_service

DEFAULT_CONFIG = Path("/etc/ratchet/ratchet.toml")
DEFAULT_RUN = Path("out/sim")

EXAMPLES = """
\b
Examples:
  ratchet up --sim                            # bench, robot and socket below out/sim
  ratchet up --sim --dir /tmp/bench --bundle out/bundle --trust out/keys
  ratchet up --config /etc/ratchet/ratchet.toml
"""


@click.command(epilog=EXAMPLES)
@click.option("--sim", is_flag=True, help="Run on the simulated bench.")
@click.option(
    "--dir",
    "run_dir",
    type=click.Path(path_type=Path),
    default=DEFAULT_RUN,
    show_default=True,
    help="With --sim: sockets, store, logs, ratchet.toml.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help=f"Without --sim: the robot's configuration [default: {DEFAULT_CONFIG}].",
)
@click.option("--bundle", type=click.Path(path_type=Path), help="Also serve this bundle to the robot.")
@click.option(
    "--allow",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Bundles may also be loaded from here (repeatable).",
)
@click.option(
    "--fallback",
    type=click.Path(path_type=Path),
    help="With --sim: the bundle to go on with when the policy server is gone.",
)
@click.option(
    "--ensemble",
    type=FiniteRange(-1.0, 1.0),
    help="With --sim: ask the policy in every tick and average, with this decay (ACT: 0.01).",
)
@click.option("--trust", type=click.Path(path_type=Path), help="Directory of trusted public keys.")
@click.option("--backend", type=click.Choice(["onnx", "onnx-int8", "torch", "compile"]), default="onnx")
@click.option("--threads", type=click.IntRange(1, 64), default=1, help="Threads of one inference.")
@click.option("--priority", type=click.IntRange(0, 9), default=0, show_default=True,
              help="Real-time priority of the policy server, for inference in every tick.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, help="With --sim: the first scene.")
@click.option("--size", default="96x96", show_default=True, help="With --sim: pictures, WIDTHxHEIGHT.")
@click.option("--prerendered", is_flag=True, help="With --sim: cameras play a scene that is drawn once.")
@click.option("--name", default="bench", show_default=True, help="With --sim: the robot's name.")
@click.option("--health", type=click.IntRange(0, 65535), help="With --sim: port of /healthz on loopback.")
@click.option("--keep-last", type=FiniteRange(0.0, 300.0), default=0.0, show_default=True,
              help="With --sim: seconds held while nothing is recorded.")  # fmt: skip
@click.option("--broker", help="With --sim: MQTT broker of the fleet, HOST:PORT on this machine.")
@click.option(
    "--keys",
    type=click.Path(path_type=Path),
    help="With --sim --broker: key directory whose holder may command the robot.",
)
@click.option("--die-with-parent", is_flag=True, hidden=True)
def up(
    sim: bool,
    run_dir: Path,
    config: Path | None,
    bundle: Path | None,
    allow: tuple[Path, ...],
    fallback: Path | None,
    ensemble: float | None,
    trust: Path | None,
    backend: str,
    threads: int,
    priority: int,
    seed: int,
    size: str,
    prerendered: bool,
    name: str,
    health: int | None,
    keep_last: float,
    broker: str | None,
    keys: Path | None,
    die_with_parent: bool,
) -> None:
    """Run the robot service until Ctrl-C: control loop, recorder, remote doors."""
    from tools.paths import trust_dir

    parent = os.getppid() if die_with_parent else None
    signal.signal(signal.SIGTERM, _end)
    if sim and config is not None:
        raise UsageError("--sim writes its own configuration; give either --sim or --config")
    paths = SimPaths(run_dir.resolve())
    fixed = None if sim else load(RobotConfig, config or DEFAULT_CONFIG)
    with contextlib.ExitStack() as stack:
        if sim:
            stack.enter_context(exclusive(paths.run_dir))  # before a second bench takes the first one's ports
        server, address = None, paths.policy if fixed is None else fixed.policy.address
        if bundle is not None or allow:
            log = (paths.run_dir if fixed is None else fixed.run_dir) / "policy_server.log"
            server = _policy_server(address, bundle, allow, trust, backend, (threads, priority), log)
            stack.callback(server.stop)
        robot = fixed or _start_bench(
            stack,
            paths,
            (seed, *_size(size)),
            prerendered,
            replace(
                _options(name, health, keep_last, broker, keys or paths.run_dir / "keys"),
                ensemble=ensemble,
                fallback=None if fallback is None else fallback.resolve(),
                trust=None if fallback is None else trust_dir(trust).resolve(),
            ),
        )
        if server is not None:
            server.wait_for_socket(Path(address.removeprefix("unix:")))
        run_service(robot, lambda at: _ready(at, robot, paths.ready if sim else None, stack), parent)


def _options(name: str, health: int | None, keep_last: float, broker: str | None, keys: Path) -> SimOptions:
    host, port = _broker(broker)
    public = {} if host is None else _public_key(keys)
    return SimOptions(
        robot=name,
        health_port=health,
        keep_last_s=keep_last,
        fleet_host=host,
        fleet_port=port,
        fleet_keys=public,
        patient=True,
    )


def _end(number: int, frame: FrameType | None) -> None:
    """SIGTERM before the event loop has taken over: leave through the context managers."""
    raise SystemExit(128 + number)


def _start_bench(
    stack: contextlib.ExitStack,
    paths: SimPaths,
    scene: tuple[int, int, int],
    prerendered: bool,
    options: SimOptions,
) -> RobotConfig:
    """``scene`` is its seed and the pictures' width and height."""
    from hal.bench.launch import start_bench

    paths.ready.unlink(missing_ok=True)
    with deaf_to_interrupts():
        bench = stack.enter_context(start_bench(paths.bench, *scene, prerendered=prerendered))
    paths.config.write_text(sim_text(paths, bench.info, options))
    return load(RobotConfig, paths.config)


def _policy_server(
    address: str,
    bundle: Path | None,
    allow: tuple[Path, ...],
    trust: Path | None,
    backend: str,
    effort: tuple[int, int],
    log: Path,
) -> Child:
    """``effort`` is the threads of an inference and their real-time priority."""
    from tools.paths import trust_dir

    if not address.startswith("unix:"):
        raise UsageError(f"--bundle serves at a unix socket, not at {address}; run `ratchet serve` instead")
    arguments = ["policy_server", "--address", address, "--trust", str(trust_dir(trust).resolve())]
    arguments += ["--backend", backend, "--threads", str(effort[0]), "--die-with-parent"]
    arguments += ["--priority", str(effort[1])]
    roots = list(allow)
    if bundle is not None:
        arguments += ["--bundle", str(bundle.resolve())]
        roots.append(bundle.resolve().parent)
    for root in roots:
        arguments += ["--allow", str(root.resolve())]
    return Child("policy server", arguments, log)


def _ready(address: str, robot: RobotConfig, ready_file: Path | None, stack: contextlib.ExitStack) -> None:
    if ready_file is not None:
        partial = ready_file.with_suffix(".partial")
        partial.write_text(json.dumps({"address": address, "pid": os.getpid()}))
        partial.replace(ready_file)
        stack.callback(ready_file.unlink, missing_ok=True)
    sys.stderr.write(f"robot {robot.robot.id} is up at {address}; Ctrl-C lets the arm down and ends it\n")
    sys.stderr.flush()


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise UsageError(f"--size {text!r} is not WIDTHxHEIGHT, such as 96x96")
    if not all(16 <= int(side) <= 1280 and int(side) % 2 == 0 for side in (width, height)):
        raise UsageError(f"--size {text!r} is out of bounds; each side is an even number from 16 to 1280")
    return int(width), int(height)


def _broker(text: str | None) -> tuple[str | None, int]:
    if text is None:
        return None, 1883
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"--broker {text!r} is not HOST:PORT, such as 127.0.0.1:1883")
    return host, int(port)


def _public_key(directory: Path) -> dict[str, str]:
    from policies.keys import ensure_key

    pair = ensure_key(directory)
    return {pair.id: pair.public.hex()}
