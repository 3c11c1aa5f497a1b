"""The text of ``ratchet.toml``: for a robot with comments to fill in, for the bench as it runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hal.bench.control import BenchInfo

_ROBOT = """\
# Ratchet's configuration of one robot. `ratchet doctor --config {path}` checks it against the machine.
# An unknown key is an error; every key that is commented out shows its default.

[robot]
id = "koch"                  # lower case; the robot's name on the fleet and in every episode
site = "home"

[follower]
port = "{follower}"          # better: /dev/serial/by-id/..., which survives replugging
baud = 1000000
calibration = "{calibration}/koch_follower.json"   # LeRobot's file, or `ratchet calibrate follower`

# [bus]
# watchdog_ms = 100          # silence after which the motors stop by themselves
# replies = {{ margin_ms = 1.5, retries = 2, max_coast = 3 }}   # patience with lost replies: docs/bus.md

# Without a leader the arm is driven over gRPC (the Teleop call) or by a policy.
[leader]
port = "{leader}"
baud = 1000000
calibration = "{calibration}/koch_leader.json"

# One table per camera; the names are those the policies know.
[cameras.front]
kind = "opencv"              # or "realsense", with the serial number as its source
source = "0"                 # index, /dev/video path or URL
width = 640
height = 480
fps = 30
# format = "YUYV"            # default MJPG; the rest as the device has it, unless said here
# exposure = 120             # in the device's units (V4L2: 100 us), gain = 30, white_balance = 4600,
# autofocus = false          # focus = 0; a device that does otherwise is refused

# [cameras.wrist]
# source = "2"

[control]
# rate_hz = 30.0
# execute = 16               # actions used of each chunk
# slack = 3                  # of them played while an answer is due; if it takes longer, the arm slows down
# ensemble = 0.01            # instead: ask in every tick, average all answers (ACT's weights)
# task_limit_s = 8.0         # a policy that has not done its task by then is flagged

[policy]
address = "unix:/run/ratchet/policy.sock"   # where `ratchet serve` listens
# timeout_s = 1.0
# pictures = "auto"          # where memory cannot be shared: "raw", "jpeg", or what is faster, measured
# fallback = {{ bundle = "/var/lib/ratchet/fallback", trust = "/etc/ratchet/keys" }}   # while it is gone

# What to ask of the kernel: for the bus processes, and for the control loop's own thread.
# [realtime]
# priority = 20              # SCHED_FIFO; 0 keeps the ordinary scheduler
# cpus = []                  # any
# [loop]
# priority = 10

[store]
path = "/var/lib/ratchet/episodes"
# jpeg_quality = 95          # of the pictures kept
# codec = "h264"             # a sixth of the bytes, more of a core: docs/episodes.md
# budget_gb = 50             # then the oldest go that are synced and unflagged, nothing else
# keep_last_s = 10           # held in memory, for a key to keep although nothing was recorded

# Who may connect: a unix socket (its group), or the network with certificates on both sides.
[remote]
address = "unix:/run/ratchet/control.sock"
plaintext = true
# address = "0.0.0.0:7443"
# tls = {{ certificate = "robot.pem", key = "robot.key", ca = "ca.pem" }}

# [health]                   # /healthz and /metrics on loopback
# port = 9464

# [fleet]                    # MQTT 5
# host = "broker.example"
# tls = {{ certificate = "robot.pem", key = "robot.key", ca = "ca.pem" }}
# keys.operator = {{ public = "64 hex digits, from `ratchet keys`", role = "drive" }}
"""


def robot_text(path: Path, follower: str, leader: str, calibration: Path) -> str:
    """A commented configuration for a real robot with its arms on these ports."""
    return _ROBOT.format(path=path, follower=follower, leader=leader, calibration=calibration)


@dataclass(frozen=True, slots=True)
class SimOptions:
    """What a simulated robot's configuration depends on besides its bench.

    ``fallback`` is a bundle that the robot serves itself when its policy server is gone, signed by one of
    ``trust``. ``fleet_host`` None means no fleet; ``fleet_keys`` maps a key id to its public key in hex.
    ``patient``: bus and motors wait longer for one another, where nobody measures how they cope with lost
    replies.
    """

    robot: str = "bench"
    site: str = "sim"
    health_port: int | None = None
    fleet_host: str | None = None
    fleet_port: int = 1883
    fleet_keys: Mapping[str, str] = field(default_factory=dict)
    task_limit_s: float = 8.0
    patient: bool = False
    keep_last_s: float = 0.0
    fallback: Path | None = None
    trust: Path | None = None
    ensemble: float | None = None


@dataclass(frozen=True, slots=True)
class SimPaths:
    """Where everything of a simulated robot lies below its run directory."""

    run_dir: Path

    @property
    def control(self) -> str:
        """Address of the robot's gRPC door."""
        return f"unix:{self.run_dir}/control.sock"

    @property
    def policy(self) -> str:
        """Address of the policy server."""
        return f"unix:{self.run_dir}/policy.sock"

    @property
    def store(self) -> Path:
        return self.run_dir / "episodes"

    @property
    def config(self) -> Path:
        return self.run_dir / "ratchet.toml"

    @property
    def bench(self) -> Path:
        """The bench's own directory: ports, socket, log."""
        return self.run_dir / "bench"

    @property
    def ready(self) -> Path:
        """Written when the service is up, removed when it ends."""
        return self.run_dir / "ready.json"


def sim_text(paths: SimPaths, bench: BenchInfo, options: SimOptions) -> str:
    """The configuration of a robot whose arms and cameras are a bench's."""
    lines = [
        "# Written by `ratchet up --sim`; the ports are those of the bench that runs now.",
        f"run_dir = {_quoted(paths.run_dir / 'run')}",
        "",
        "[robot]",
        f"id = {_quoted(options.robot)}",
        f"site = {_quoted(options.site)}",
    ]
    for arm, port in (("follower", bench.follower_port), ("leader", bench.leader_port)):
        lines += ["", f"[{arm}]", f"port = {_quoted(port)}", f"baud = {bench.baud}", "uncalibrated = true"]
    for name, url in bench.cameras.items():
        lines += ["", f"[cameras.{name}]", f"source = {_quoted(url)}"]
        lines += [f"width = {bench.width}", f"height = {bench.height}"]
    if options.patient:
        # These motors are a process: a busy machine keeps it waiting.
        lines += ["", "[bus]", "watchdog_ms = 400", "replies = { margin_ms = 4.0, max_coast = 15 }"]
    lines += ["", "[control]", f"task_limit_s = {options.task_limit_s}"]
    if options.ensemble is not None:
        lines += [f"ensemble = {options.ensemble}"]
    lines += ["", "[policy]", f"address = {_quoted(paths.policy)}", "timeout_s = 0.5"]
    if options.fallback is not None:
        lines += ["", "[policy.fallback]", f"bundle = {_quoted(options.fallback)}"]
        lines += [f"trust = {_quoted(options.trust)}"]
    lines += ["", "[store]", f"path = {_quoted(paths.store)}", f"keep_last_s = {options.keep_last_s}"]
    lines += ["", "[remote]", f"address = {_quoted(paths.control)}", "plaintext = true"]
    if options.health_port is not None:
        lines += ["", "[health]", f"port = {options.health_port}"]
    if options.fleet_host is not None:
        lines += ["", "[fleet]", f"host = {_quoted(options.fleet_host)}", f"port = {options.fleet_port}"]
        lines += ["plaintext = true", f"journal = {_quoted(paths.run_dir / 'fleet.db')}"]
        for key, public in options.fleet_keys.items():
            lines += ["", f"[fleet.keys.{_quoted(key)}]", f"public = {_quoted(public)}", 'role = "deploy"']
    return "\n".join(lines) + "\n"


def _quoted(value: object) -> str:
    """A TOML basic string; JSON's escapes are a subset of TOML's."""
    return json.dumps(str(value))
