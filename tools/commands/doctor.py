"""`ratchet doctor`: look at everything a robot needs, and say what to do."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Iterator
from pathlib import Path

import click

from runtime.config import RobotConfig, StoreConfig
from tools.checking import Finding, ok, problem
from tools.commands.init import serial_ports
from tools.config import load
from tools.console import show_json
from tools.errors import UsageError
from tools.hardware_checks import hardware_findings, port_findings
from tools.machine_checks import machine_findings
from tools.options import PATH, json_flag
from tools.udev import write_rule

_MARKS = {"ok": "ok      ", "warning": "warning ", "problem": "PROBLEM "}

EXAMPLES = """
\b
Examples:
  ratchet doctor                                     # this machine and what is plugged in
  ratchet doctor --config /etc/ratchet/ratchet.toml  # and whether it fits
  ratchet doctor --write-udev 99-ratchet.rules       # the rule for the adapters, to be installed as root
"""


@click.command(epilog=EXAMPLES)
@click.option("--config", type=PATH, help="A robot's configuration.")
@click.option("--no-drawing", is_flag=True, help="Leave out the bench's pictures, which take seconds.")
@click.option("--write-udev", type=PATH, help="Only write the udev rule of the arms' adapters to this file.")
@json_flag
def doctor(config: Path | None, no_drawing: bool, write_udev: Path | None, as_json: bool) -> None:
    """Check configuration, ports, motors, cameras, disk, priorities. Exit code 1 when there is a problem.

    Nothing is changed and nothing energised. Arms and cameras are looked at while no service uses them.
    """
    if write_udev is not None:
        click.echo(write_rule(write_udev))
        return
    findings: list[Finding] = []
    for finding in _findings(config, not no_drawing):
        findings.append(finding)
        if not as_json:
            click.echo(_line(finding))
    if as_json:
        show_json([dataclasses.asdict(finding) for finding in findings])
    if any(finding.verdict == "problem" for finding in findings):
        raise SystemExit(1)


def _line(finding: Finding) -> str:
    what = f"{_MARKS[finding.verdict]}{finding.what}: {finding.detail}"
    return f"{what}; {finding.remedy}" if finding.remedy else what


def _findings(path: Path | None, draw: bool) -> Iterator[Finding]:
    if path is None:
        yield from port_findings(serial_ports())
        yield from machine_findings(StoreConfig().path, draw)
        return
    try:
        config = load(RobotConfig, path)
    except UsageError as error:
        yield problem("configuration", str(error), "mend it, then look again")
        return
    yield ok("configuration", str(path))
    if _answers(config.remote.address):
        yield ok("service", f"runs at {config.remote.address}, and has its arms and cameras")
    else:
        yield from hardware_findings(config)
    yield from machine_findings(config.store.path, draw)


def _answers(address: str) -> bool:
    """Somebody listens there: ports and cameras are then in use, and rightly so."""
    try:
        if address.startswith("unix:"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.connect(address.removeprefix("unix:"))
        else:
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=1.0).close()
    except (OSError, ValueError):
        return False
    return True
