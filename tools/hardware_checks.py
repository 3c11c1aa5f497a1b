"""Are arms and cameras there, and the ones that were meant: udev rule, ports, motors, calibration."""

from __future__ import annotations

import grp
import os
from collections.abc import Iterator
from pathlib import Path

from hal.calibration import Calibration
from hal.dynamixel.arm import KOCH_FOLLOWER, KOCH_LEADER, ArmSpec
from hal.dynamixel.inspection import inspect
from hal.dynamixel.setup import SCAN_BAUDS, FoundMotor, scan
from hal.errors import HalError
from runtime.config import ArmConfig, RobotConfig
from tools.camera_checks import camera_finding
from tools.checking import Finding, failed, ok, problem, warning
from tools.motor_checks import judge_motors, report_findings
from tools.udev import udev_finding

_LATENCY_MS = 1


def hardware_findings(config: RobotConfig) -> Iterator[Finding]:
    """Everything a configuration names."""
    yield udev_finding()
    yield from _arm("follower", config.follower, KOCH_FOLLOWER)
    if config.leader is not None:
        yield from _arm("leader", config.leader, KOCH_LEADER)
    for name, camera in config.cameras.items():
        yield camera_finding(name, camera)


def port_findings(ports: list[str]) -> Iterator[Finding]:
    """Without a configuration: what is on each serial port of the machine."""
    yield udev_finding()
    if not ports:
        yield warning("serial ports", "none found", "plug in the arm's adapter, and switch on its power")
    for port in ports:
        yield from _port(port)
        yield _motors_anywhere(port)


def _arm(name: str, arm: ArmConfig, spec: ArmSpec) -> Iterator[Finding]:
    calibration, finding = _calibration(name, arm, spec)
    yield finding
    if not Path(arm.port).exists():
        yield problem(
            f"{name} port",
            f"there is no {arm.port}",
            "plug in the adapter; `ls -l /dev/serial/by-id` shows its name",
        )
        return
    yield from _port(arm.port)
    try:
        found = _scan_until_answered(arm)
        yield judge_motors(name, arm.port, arm.baud, spec, found)
        models = {(motor.id, motor.model.number) for motor in spec.motors}
        ids = {m.id for m in found if (m.id, m.model_number) in models and m.baud == arm.baud}
        if ids:
            yield from report_findings(name, inspect(arm.port, arm.baud, spec, calibration, ids))
    except HalError as error:
        yield failed(f"{name} motors", error)


def _scan_until_answered(arm: ArmConfig) -> list[FoundMotor]:
    """Who answers at the configured rate, else at the first other one where somebody does."""
    for baud in (arm.baud, *(baud for baud in SCAN_BAUDS if baud != arm.baud)):
        if found := scan(arm.port, (baud,)):
            return found
    return []


def _calibration(name: str, arm: ArmConfig, spec: ArmSpec) -> tuple[Calibration | None, Finding]:
    what = f"{name} calibration"
    if arm.calibration is None:
        return Calibration.identity(spec), ok(what, "none is needed: uncalibrated = true")
    try:
        calibration = Calibration.load(arm.calibration)
        calibration.check(spec)
    except HalError as error:
        return None, failed(what, error)
    return calibration, ok(what, str(arm.calibration))


def _port(port: str) -> Iterator[Finding]:
    """Permission, and the adapter's own delay."""
    if not os.access(port, os.R_OK | os.W_OK):
        group = _group(port)
        yield problem(
            f"port {port}",
            f"may not be opened by you (it belongs to group {group})",
            f"sudo usermod -aG {group} $USER, then log in again",
        )
        return
    timer = Path("/sys/class/tty") / Path(port).resolve().name / "device" / "latency_timer"
    if timer.exists() and (delay_ms := int(timer.read_text())) > _LATENCY_MS:
        yield warning(
            f"port {port}",
            f"its adapter collects replies for {delay_ms} ms",
            f"echo {_LATENCY_MS} | sudo tee {timer} (or install systemd/99-ratchet.rules)",
        )
    else:
        yield ok(f"port {port}", "may be opened")


def _motors_anywhere(port: str) -> Finding:
    try:
        found = scan(port)
    except HalError as error:
        return failed(f"motors on {port}", error)
    if not found:
        return warning(f"motors on {port}", "none answers", "check power and cable, if an arm is there")
    models = [(motor.id, motor.model_number) for motor in found]
    for spec in (KOCH_FOLLOWER, KOCH_LEADER):
        if models == [(motor.id, motor.model.number) for motor in spec.motors]:
            return ok(f"motors on {port}", f"a {spec.name.replace('_', ' ')} at {found[0].baud} baud")
    listed = ", ".join(f"{motor.id} {motor.model or motor.model_number} at {motor.baud}" for motor in found)
    return warning(
        f"motors on {port}", f"not a Koch arm as it is: {listed}", "give each motor its id and rate"
    )


def _group(port: str) -> str:
    """The group that may open a port."""
    try:
        return grp.getgrgid(os.stat(port).st_gid).gr_name
    except (OSError, KeyError):
        return "dialout"
