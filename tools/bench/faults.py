"""`ratchet bench faults`: break everything in turn on a simulated robot, and measure what comes of it."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click

from tools.console import say, show_json
from tools.errors import UsageError
from tools.faults.report import line, write_markdown
from tools.faults.rig import Served
from tools.faults.rigs import Rigs
from tools.faults.row import Measured
from tools.faults.table import ROWS
from tools.options import PATH, json_flag

EXAMPLES = """
\b
Examples:
  ratchet bench faults --json
  ratchet bench faults --only cable-out-2s --only disk-full
  ratchet bench faults --markdown docs/faults.md
"""


@click.command(epilog=EXAMPLES)
@click.option(
    "--only", metavar="NAME", type=click.Choice([row.name for row in ROWS]), multiple=True, help="This row."
)
@click.option("--markdown", type=PATH, help="Also write the table into this file, between its markers.")
@json_flag
def command(only: tuple[str, ...], markdown: Path | None, as_json: bool) -> None:
    """Do every fault of the table to a simulated robot: what the arm did, and what it took to go on.

    The figures come from the emulator, which sees every goal that reaches a motor. Some minutes for all rows.
    """
    if markdown is not None and (only or not markdown.exists()):
        raise UsageError("--markdown takes the whole table and a file that has its markers")
    with tempfile.TemporaryDirectory(prefix="ratchet-") as directory:
        done = measure(Path(directory), only)
    if markdown is not None:
        write_markdown(markdown, done)
    if as_json:
        show_json({"held": sum(row.held for row in done), "rows": [row.model_dump() for row in done]})


def measure(directory: Path, only: tuple[str, ...] = ()) -> list[Measured]:
    """Every row of the table (or those named), one after the other."""
    rows = [row for row in ROWS if not only or row.name in only]
    done: list[Measured] = []
    with Rigs(directory, lambda: _tiny(directory)) as rigs:
        for row in rows:
            done.append(rigs.run(row))
            say(f"{len(done)}/{len(rows)} {line(done[-1])}")
            sys.stderr.flush()
    return done


def _tiny(directory: Path) -> Served:
    """An untrained policy: what it does is of no interest here, only that it is asked and answers."""
    from tools.faults.tiny_policy import export_policies

    policies = export_policies(directory / "policies")
    return Served(policies.first.path, policies.trust)
