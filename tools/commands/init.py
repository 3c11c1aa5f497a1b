"""`ratchet init`: a configuration file with comments, for a robot or for a bench that runs."""

from __future__ import annotations

from pathlib import Path

import click
from pydantic import ValidationError

from hal.bench.control import BenchInfo
from hal.bench.launch import INFO_FILE
from tools.errors import UsageError
from tools.options import PATH
from tools.robot_file import SimOptions, SimPaths, robot_text, sim_text

_BY_ID = Path("/dev/serial/by-id")
_CALIBRATIONS = Path("/etc/ratchet")

EXAMPLES = """
\b
Examples:
  ratchet init                                # writes ratchet.toml here
  ratchet init /etc/ratchet/ratchet.toml
  ratchet init bench.toml --sim --dir out/sim # for the bench that runs there
"""


@click.command(epilog=EXAMPLES)
@click.argument("path", type=PATH, default=Path("ratchet.toml"))
@click.option("--sim", is_flag=True, help="For the bench that runs in --dir.")
@click.option("--dir", "run_dir", type=PATH, default=Path("out/sim"), show_default=True)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def init(path: Path, sim: bool, run_dir: Path, force: bool) -> None:
    """Write a configuration file to PATH, with the serial ports found on this machine."""
    if path.exists() and not force:
        raise UsageError(f"{path} exists; give another PATH, or --force to replace it")
    path.parent.mkdir(parents=True, exist_ok=True)
    if sim:
        path.write_text(sim_text(SimPaths(run_dir.resolve()), _bench(run_dir), SimOptions()))
        click.echo(f"wrote {path} for the bench in {run_dir}")
        return
    ports = serial_ports()
    follower, leader = (
        [*ports, "/dev/ttyACM0", "/dev/ttyACM1"][:2] if len(ports) != 1 else (*ports, "/dev/ttyACM1")
    )
    path.write_text(robot_text(path, follower, leader, _CALIBRATIONS))
    click.echo(f"wrote {path}; check which port is which with `ratchet doctor --config {path}`")


def serial_ports() -> list[str]:
    """Serial adapters by the names that survive replugging; by their device names where there are none."""
    if _BY_ID.is_dir():
        return sorted(str(port) for port in _BY_ID.iterdir())
    return sorted(str(port) for pattern in ("ttyACM*", "ttyUSB*") for port in Path("/dev").glob(pattern))


def _bench(run_dir: Path) -> BenchInfo:
    found = run_dir / "bench" / INFO_FILE
    try:
        return BenchInfo.model_validate_json(found.read_text())
    except FileNotFoundError:
        raise UsageError(f"no bench runs in {run_dir}; start one with `ratchet up --sim`") from None
    except ValidationError as error:
        raise UsageError(f"{found} is not a bench's: {error.errors()[0]['msg']}") from error
