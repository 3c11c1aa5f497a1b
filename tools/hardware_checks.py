"""Are arms and cameras there, and the ones that were meant: ports, motors, calibration, pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from hal.calibration import Calibration
from hal.dynamixel.arm import KOCH_FOLLOWER, KOCH_LEADER, ArmSpec
from hal.dynamixel.setup import SCAN_BAUDS, FoundMotor, scan
from hal.errors import HalError
from runtime.camera_process import CameraSpec, open_driver
from runtime.config import ArmConfig, RobotConfig
from tools.checking import Finding, failed, ok, problem, warning

_FIRST_PICTURE_S = 10.0
_LATENCY_MS = 1


def hardware_findings(config: RobotConfig) -> Iterator[Finding]:
    """Everything a configuration names."""
    yield from _arm("follower", config.follower, KOCH_FOLLOWER)
    if config.leader is not None:
        yield from _arm("leader", config.leader, KOCH_LEADER)
    for name, camera in config.cameras.items():
        yield _camera(name, camera)


def port_findings(ports: list[str]) -> Iterator[Finding]:
    """Without a configuration: what is on each serial port of the machine."""
    if not ports:
        yield warning("serial ports", "none found", "plug in the arm's adapter, and switch on its power")
    for port in ports:
        yield from _port(port)
        yield _motors_anywhere(port)


def _arm(name: str, arm: ArmConfig, spec: ArmSpec) -> Iterator[Finding]:
    yield _calibration(name, arm, spec)
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
    except HalError as error:
        yield failed(f"{name} motors", error)
        return
    yield _judge_motors(name, arm, spec, found)


def _scan_until_answered(arm: ArmConfig) -> list[FoundMotor]:
    """Who answers at the configured rate, else at the first other one where somebody does."""
    for baud in (arm.baud, *(baud for baud in SCAN_BAUDS if baud != arm.baud)):
        if found := scan(arm.port, (baud,)):
            return found
    return []


def _calibration(name: str, arm: ArmConfig, spec: ArmSpec) -> Finding:
    what = f"{name} calibration"
    if arm.calibration is None:
        return ok(what, "none is needed: uncalibrated = true")
    try:
        Calibration.load(arm.calibration).check(spec)
    except HalError as error:
        return failed(what, error)
    return ok(what, str(arm.calibration))


def _port(port: str) -> Iterator[Finding]:
    """Permission, and the adapter's own delay."""
    if not os.access(port, os.R_OK | os.W_OK):
        yield problem(
            f"port {port}", "may not be opened by you", "sudo usermod -aG dialout $USER, then log in again"
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


def _judge_motors(name: str, arm: ArmConfig, spec: ArmSpec, found: list[FoundMotor]) -> Finding:
    what = f"{name} motors"
    if not found:
        return problem(
            what, f"none answers on {arm.port} at any baud rate", "check the arm's power and cable"
        )
    bauds = {motor.baud for motor in found}
    if bauds != {arm.baud}:
        return problem(
            what,
            f"they answer at {', '.join(str(baud) for baud in sorted(bauds))} baud, not at {arm.baud}",
            f"set [{name}] baud, or give the motors {arm.baud} baud with Dynamixel Wizard 2.0",
        )
    by_id = {motor.id: motor for motor in found}
    for wanted in spec.motors:
        motor = by_id.pop(wanted.id, None)
        if motor is None:
            return problem(what, f"{wanted} does not answer", "check its cable; its id may be another")
        if motor.model_number != wanted.model.number:
            return problem(
                what,
                f"{wanted} is {motor.model or motor.model_number}, not {wanted.model_name}",
                "are follower and leader swapped in the configuration?",
            )
        if motor.firmware < wanted.model.min_firmware:
            return problem(
                what,
                f"{wanted} has firmware {motor.firmware}, {wanted.model.min_firmware} is needed",
                "update it with Dynamixel Wizard 2.0",
            )
    if by_id:
        return warning(what, f"unknown motors {sorted(by_id)} answer too", "take them off the bus")
    versions = "/".join(str(v) for v in sorted({motor.firmware for motor in found}))
    return ok(what, f"all {len(found)} answer at {arm.baud} baud, firmware {versions}")


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


def _camera(name: str, spec: CameraSpec) -> Finding:
    what = f"camera {name}"
    camera = None
    try:
        camera = open_driver(name, spec)
        camera.start()
        frame = camera.read(_FIRST_PICTURE_S)
    except HalError as error:
        return failed(what, error)
    finally:
        if camera is not None:
            camera.stop()
    height, width = frame.image.shape[:2]
    if (height, width) != (spec.height, spec.width):
        return problem(
            what, f"delivers {width}x{height}, not {spec.width}x{spec.height}", "set its size to that"
        )
    if int(frame.image.max()) - int(frame.image.min()) < 8:
        return warning(what, "its picture is of one colour", "is its lens covered, or the light off?")
    return ok(what, f"delivers {width}x{height}")
