"""`ratchet calibrate`: give an arm its zero and its ranges, or check a calibration file."""

from __future__ import annotations

import contextlib
import select
import sys
import time
from pathlib import Path

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from hal.calibration import Calibration
from hal.dynamixel.arm import KOCH_FOLLOWER, KOCH_LEADER, ArmSpec
from hal.dynamixel.bus import ArmBus
from hal.errors import HalError, MotorError
from hal.types import JOINTS
from runtime.config import RobotConfig
from runtime.servo import ServoConfig
from tools.calibration import HandCalibration, JointRange
from tools.calibration_notes import notes, rest_notes
from tools.config import load
from tools.console import say
from tools.errors import UsageError
from tools.options import PATH

_SAVE_EVERY_S = 1.0
_LOOK_S = 0.02

EXAMPLES = """
\b
Examples:
  ratchet calibrate follower --config /etc/ratchet/ratchet.toml
  ratchet calibrate leader --port /dev/ttyACM1 --out koch_leader.json
  ratchet calibrate follower --config /etc/ratchet/ratchet.toml --invert shoulder_lift
  ratchet calibrate --check koch_follower.json
"""


@click.command(epilog=EXAMPLES)
@click.argument("arm", type=click.Choice(["follower", "leader"]), required=False)
@click.option("--config", type=PATH, help="Take port, baud rate and file from this configuration.")
@click.option("--port", help="Serial port of the arm.")
@click.option("--baud", type=int, default=1_000_000, show_default=True)
@click.option("--out", type=PATH, help="File to write [default: koch_ARM.json, or what --config names].")
@click.option("--invert", type=click.Choice(JOINTS), multiple=True, help="This joint counts the other way.")
@click.option("--restart", is_flag=True, help="Forget an interrupted run instead of going on with it.")
@click.option("--check", type=PATH, help="Only look whether this file is sound.")
def calibrate(
    arm: str | None,
    config: Path | None,
    port: str | None,
    baud: int,
    out: Path | None,
    invert: tuple[str, ...],
    restart: bool,
    check: Path | None,
) -> None:
    """Calibrate ARM by moving it by hand, its motors released; the service must not be running.

    Three times you are asked to press Enter: with the arm in the middle of its ranges, when each joint
    has been moved from end to end, and with the arm folded as it shall lie when it is let down (which
    shows whether the joints count in the direction that is expected). Interrupted, it goes on where it was.
    """
    if check is not None:
        _check(check, arm)
        return
    if arm is None:
        raise UsageError("say which arm: `ratchet calibrate follower` or `ratchet calibrate leader`")
    robot = None if config is None else load(RobotConfig, config)
    port, baud, out = _where(arm, robot, port, baud, out)
    spec = KOCH_LEADER if arm == "leader" else KOCH_FOLLOWER
    bus = ArmBus(spec, Calibration.identity(spec), port, baud)
    bus.open()
    with contextlib.closing(bus):
        _release(bus)
        work = HandCalibration(bus, arm == "leader", out.with_suffix(".progress"), invert)
        if restart or not work.resume():
            _ask("move the arm to the middle of all its ranges, then press Enter")
            work.begin()
        else:
            say("going on with the calibration that was interrupted (--restart begins anew)")
        _sweep(work)
        _ask("fold the arm as it shall lie when it is let down, the gripper closed, then press Enter")
        folded = work.pose()
        result = work.result()
        result.save(out)
        work.done()
    click.echo(f"wrote {out}")
    _show(result)
    servo = ServoConfig() if robot is None else robot.servo
    for note in rest_notes(folded, servo.rest_pose, arm == "leader"):
        click.echo(f"note: {note}")


def _where(
    arm: str, robot: RobotConfig | None, port: str | None, baud: int, out: Path | None
) -> tuple[str, int, Path]:
    """Port, baud rate and file: from the options, else from the configuration."""
    if robot is not None:
        section = robot.follower if arm == "follower" else robot.leader
        if section is None:
            raise UsageError(f"the configuration has no [{arm}]")
        port, baud, out = port or section.port, section.baud, out or section.calibration
    if port is None:
        raise UsageError("say where the arm is: --port, or --config FILE; `ratchet doctor` lists the ports")
    return port, baud, out or Path(f"koch_{arm}.json")


def _release(bus: ArmBus) -> None:
    if bus.torque().any():
        _ask("the motors hold the arm: take it in your hand, then press Enter to release them")
    bus.disarm_watchdog()
    bus.set_torque(False)


def _ask(what: str) -> None:
    say(what)
    if not sys.stdin.readline():
        raise _input_ended()


def _input_ended() -> UsageError:
    return UsageError("the input ended before the calibration was done; run this again, it goes on from here")


def _sweep(work: HandCalibration) -> None:
    """Watch the joints being moved until Enter is pressed and each was moved far enough."""
    say(
        "move every joint slowly from end to end, the gripper from closed to wide open "
        "(pan and roll keep the whole turn), then press Enter"
    )
    while True:
        _watch(work)
        forgotten = work.forgotten()
        if not forgotten:
            return
        say(f"not moved far enough yet: {forgotten}; move them from end to end, then press Enter")


def _watch(work: HandCalibration) -> None:
    """Follow the joints until Enter is pressed. Raises UsageError when the input ends, MotorError."""
    console = Console(file=sys.stderr, highlight=False)
    saved = time.monotonic()
    silent = 0
    with (
        Live(console=console, auto_refresh=False) if console.is_terminal else contextlib.nullcontext() as live
    ):
        while not select.select([sys.stdin], [], [], _LOOK_S)[0]:
            try:
                rows = work.look()
                silent = 0
            except MotorError:
                silent += 1  # a cable moves with the arm
                if silent > 20:
                    raise
                continue
            if isinstance(live, Live):
                live.update(_table(rows), refresh=True)
            if time.monotonic() - saved > _SAVE_EVERY_S:
                work.save()
                saved = time.monotonic()
    if not sys.stdin.readline():
        work.result()  # a person who is gone and has forgotten a joint is told which
        raise _input_ended()


def _table(rows: list[JointRange]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("joint", "low", "now", "high", ""):
        table.add_column(name, justify="left" if name == "joint" else "right")
    for row in rows:
        table.add_row(row.joint, str(row.low), str(row.now), str(row.high), "" if row.enough else "more")
    return table


def _check(path: Path, arm: str | None) -> None:
    """Raises CalibrationError in words a person can act on."""
    calibration = Calibration.load(path)
    specs: list[ArmSpec] = [KOCH_FOLLOWER, KOCH_LEADER]
    if arm is not None:
        specs = [KOCH_LEADER if arm == "leader" else KOCH_FOLLOWER]
    problems: list[HalError] = []
    for spec in specs:
        try:
            calibration.check(spec)
            break
        except HalError as error:
            problems.append(error)
    else:
        raise problems[0]
    click.echo(f"{path} is a sound calibration")
    _show(calibration)


def _show(calibration: Calibration) -> None:
    for joint, (low, high) in zip(calibration.joints, calibration.limits_rad, strict=True):
        click.echo(f"  {joint:<14} {low:+.3f} … {high:+.3f} rad")
    for note in notes(calibration):
        click.echo(f"note: {note}")
