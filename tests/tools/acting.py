"""What the tests of a running robot share: waiting, looking at its processes, calling its verbs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from protos.ratchet.v1 import robot_pb2 as pb
from runtime.remote.client import Control, RobotClient
from tools.cli import cli
from tools.faults.processes import processes
from tools.sim import SimRobot

__all__ = ["processes"]

TIMEOUT_S = 30.0
ROOT = Path(__file__).parents[2]


async def until_mode(robot: RobotClient, mode: str, timeout_s: float = TIMEOUT_S) -> pb.RobotState:
    """The first state in ``mode``."""
    deadline = time.monotonic() + timeout_s
    while True:
        state = await robot.state()
        if state.mode == mode:
            return state
        assert time.monotonic() < deadline, f"mode {state.mode} ({state.reason}) instead of {mode}"
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def driving(sim: SimRobot, mode: str = "") -> AsyncIterator[tuple[RobotClient, Control]]:
    """Control of an enabled robot, in ``mode`` if one is given."""
    async with sim.client() as robot, robot.control("test") as control:
        if (await robot.state()).mode == "estop":
            await control.clear_estop()
        await control.enable()
        if mode:
            await control.set_mode(mode)
        yield robot, control


def leader_to_arm(sim: SimRobot) -> None:
    """A hand brings the leader to where the arm is: else teleoperation begins with a way that nobody chose,
    through whatever an earlier test left standing there, and ends in a contact."""
    sim.bench.demonstrate(0)
    time.sleep(0.5)
    sim.bench.stop_demonstration()


def ratchet(*arguments: str | Path, timeout_s: float = 60.0) -> tuple[int, str]:
    """Exit code and error output of a `ratchet` that is a process of its own and ends by itself."""
    done = subprocess.run(
        [sys.executable, "-m", "tools.cli", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return done.returncode, done.stderr


def call(*arguments: str | Path) -> Result:
    """Run a verb in this process; errors stay in ``result.exception``."""
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def call_json(*arguments: str | Path) -> Any:
    """Run a verb that prints JSON and must succeed."""
    result = call(*arguments)
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return json.loads(result.stdout)
