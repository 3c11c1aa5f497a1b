"""The process that owns one arm's port: 240 cycles a second, no asyncio, collector frozen.

Started by ``BusHandle`` as ``python -m runtime.bus_process --config FILE --parent PID``. When its
parent dies it ends at once, and the motors' own bus watchdog stops the arm where it is.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hal.calibration import Calibration
from hal.dynamixel.arm import KOCH_FOLLOWER, KOCH_LEADER
from hal.dynamixel.bus import ArmBus
from hal.dynamixel.bus import BusConfig as ReplyConfig
from hal.errors import HalError
from hal.types import NUM_JOINTS, JointState
from runtime.bus_link import ArmLink
from runtime.bus_loop import BusLoop
from runtime.bus_records import BusFiles
from runtime.errors import RuntimeFault
from runtime.guard import GuardLimits
from runtime.leader_link import LeaderLink
from runtime.nouns import Source, Waypoint
from runtime.realtime import RealtimeConfig, RealtimeReport, die_with_parent, make_realtime
from runtime.ring import memory_fence
from runtime.servo import ServoConfig, ServoCore
from runtime.streams import NS, SERVO_HZ
from runtime.timing import Pacer

log = logging.getLogger(__name__)

EXIT_CONFIG = 2


class BusConfig(BaseModel):
    """One arm's bus process. Without a calibration file the middle of each motor's turn is zero."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    arm: str = Field(default="follower", pattern=r"^[a-z][a-z0-9_]{0,31}$")
    role: Literal["follower", "leader"] = "follower"
    port: str = Field(min_length=1)
    baud: int = Field(default=1_000_000, ge=9600, le=4_500_000)
    calibration: Path | None = None
    run_dir: Path
    leader: str | None = Field(default=None, description="arm that this follower may follow at servo rate")
    rate_hz: float = Field(default=SERVO_HZ, ge=50.0, le=1000.0)
    watchdog_ms: int = Field(default=100, ge=20, le=2540)
    reconnect_s: float = Field(default=0.5, ge=0.05, le=60.0)
    shutdown_errors: int = Field(default=0x3D, ge=0, le=0xFF, description="error bits that stop a motor")
    replies: ReplyConfig = ReplyConfig()
    guard: GuardLimits = GuardLimits()
    servo: ServoConfig = ServoConfig()
    realtime: RealtimeConfig = RealtimeConfig(priority=40, lock_memory=True)

    @model_validator(mode="after")
    def _watchdog_outlives_a_cycle(self) -> Self:
        if self.watchdog_ms < 4000.0 / self.rate_hz:
            raise ValueError(
                f"watchdog_ms {self.watchdog_ms} is less than four cycles at {self.rate_hz:g} Hz"
            )
        return self

    @property
    def period_ns(self) -> int:
        return round(NS / self.rate_hz)

    @property
    def files(self) -> BusFiles:
        return BusFiles(self.run_dir, self.arm)


def build_loop(config: BusConfig) -> BusLoop:
    """Everything the cycle needs, compiled and mapped. Raises HalError or RuntimeFault."""
    spec = KOCH_LEADER if config.role == "leader" else KOCH_FOLLOWER
    calibration = (
        Calibration.identity(spec) if config.calibration is None else Calibration.load(config.calibration)
    )
    port = ArmBus(spec, calibration, config.port, config.baud, config.replies)
    link = ArmLink(port, config.watchdog_ms, config.reconnect_s, config.shutdown_errors)
    core = None
    if config.role == "follower":
        low, high = calibration.limits_rad.T
        limits = config.guard.narrowed(low, high)
        core = ServoCore(limits, config.servo, 1.0 / config.rate_hz)
        _compile(config, limits)
    memory_fence()
    leader = None
    if config.leader is not None:
        leader = LeaderLink(BusFiles(config.run_dir, config.leader).state, config.period_ns)
    return BusLoop(link, core, config.files, leader)


def _compile(config: BusConfig, limits: GuardLimits) -> None:
    """Run a throw-away core once: the first cycle must not wait for the compiler."""
    core = ServoCore(limits, config.servo, 1.0 / config.rate_hz)
    zeros, none = np.zeros(NUM_JOINTS), np.zeros(NUM_JOINTS, np.uint8)
    joints = JointState(0, 0, zeros, zeros, zeros, zeros, zeros, none, none > 0, none.astype(np.int64))
    core.start(joints)
    core.command(Waypoint(zeros.copy(), NS, 2 * NS, Source.NONE, 0))
    core.step(1, joints)


def run(config: BusConfig, parent: int) -> None:
    """Cycle until asked to stop or orphaned. Raises HalError or RuntimeFault when it cannot begin."""
    loop = build_loop(config)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the parent's to judge
    signal.signal(signal.SIGTERM, lambda *_: loop.stop())
    loop.prime()
    report = make_realtime(config.realtime)
    log.info("bus process ready arm=%s %s", config.arm, report.line())
    _write_report(config.files, report=report)
    pacer = Pacer(config.period_ns)
    while not loop.finished:
        wake = pacer.wait()
        if os.getppid() != parent:
            log.error("bus process orphaned arm=%s; the motors' watchdog takes over", config.arm)
            return
        loop.cycle(wake, pacer)


def _write_report(files: BusFiles, *, report: RealtimeReport | None = None, error: str = "") -> None:
    """Tell the handle how the start went."""
    measures = [] if report is None else [[m.name, m.granted, m.detail] for m in report.measures]
    partial = files.report.with_suffix(".partial")
    partial.write_text(json.dumps({"error": error, "realtime": measures}))
    os.replace(partial, files.report)


def main(arguments: list[str] | None = None) -> int:
    """Entry of the process; the exit status is 0, or 2 when it cannot begin."""
    parser = argparse.ArgumentParser(prog="runtime.bus_process", description="own one arm's serial port")
    parser.add_argument("--config", type=Path, required=True, help="BusConfig as JSON")
    parser.add_argument("--parent", type=int, required=True, help="process to die with")
    parser.add_argument("--die-with-thread", action="store_true", help="also ask the kernel to kill it then")
    parser.add_argument("--log", default="INFO", help="level of what is logged")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=options.log, format="%(levelname)s %(name)s %(message)s")
    if options.die_with_thread and not die_with_parent(options.parent):
        return 0
    try:
        config = BusConfig.model_validate_json(options.config.read_text())
    except (OSError, ValidationError) as error:
        log.error("bus process configuration %s: %s", options.config, error)
        return EXIT_CONFIG
    try:
        run(config, options.parent)
    except (HalError, RuntimeFault, ValueError) as error:
        log.info("bus process cannot begin arm=%s: %s", config.arm, error)  # the handle tells its user
        _write_report(config.files, error=str(error))
        return EXIT_CONFIG
    return 0


if __name__ == "__main__":
    sys.exit(main())
