"""What the tests of the benchmarks of serving share: a policy already exported, and a benchmark's JSON."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner

from tests.tiny_policy import Policies
from tools.bench.act_bundle import Served


def serve_as(policies: Policies, root: Path) -> Served:
    """The tiny policy where a benchmark looks for the one it would export."""
    served = Served(root / "bundle", root / "trust")
    shutil.copytree(policies.first.path, served.bundle)
    shutil.copytree(policies.trust, served.trust)
    return served


def figures(command: click.Command, *arguments: object) -> dict[str, Any]:
    """What ``command --json`` prints. The collector is left running, whatever the benchmark did to it."""
    try:
        done = CliRunner().invoke(command, [*map(str, arguments), "--json"])
    finally:
        gc.unfreeze()
        gc.enable()
    if done.exception is not None:
        raise done.exception
    found: dict[str, Any] = json.loads(done.stdout)
    return found
