"""`ratchet bench estop`: how soon an emergency stop reaches the motors, from every door, under load."""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from hal.bench.judge import GoalLog
from runtime.remote.client import RobotClient
from tools.bench.act_bundle import CAMERA_SIZE, DESCRIPTION, Served, export
from tools.bench.common import quantile, show
from tools.bench.estop_doors import Door, Pulled, Terminal, open_doors
from tools.bench.loads import TASK, learner, learner_steps
from tools.console import say
from tools.errors import UsageError
from tools.faults.broker import Broker, find_mosquitto
from tools.options import PATH, json_flag
from tools.ports import free_port
from tools.progress import Update, bar
from tools.sim import SimRobot, SimSettings, start_sim

BUDGET_MS = 50.0
DOORS = ("cli", "grpc", "mqtt", "web", "keyboard")
NAME = "estop"
EXAMPLES = """
\b
Examples:
  ratchet bench estop --trials 100 --json > estop.json
  ratchet bench estop --trials 5 --door grpc --door keyboard
"""
_RECORDED_S = 6.0  # what the learner begins with
_EPISODE_S = 20.0
_FIRST_STEP_S = 120.0  # it runs only where nobody else wants to; the figures say how far it came
_MOVING_S = (1.3, 1.7)  # after the mode was set: the motion has ramped up, at any phase of any period
_SEEN_S = 0.35  # after the door answered, until the log is read
_TICKS_S = 0.15  # a fault that the e-stop had hidden shows in the next tick, and enabling then clears it
_TICK_RAD = 2 * np.pi / 4096
_RETRIES = 5


@click.command(epilog=EXAMPLES)
@click.option("--trials", type=click.IntRange(1, 10_000), default=30, show_default=True, help="Of each door.")
@click.option("--door", "doors", type=click.Choice(DOORS), multiple=True, help="Only this one (repeatable).")
@click.option("--learning/--no-learning", default=True, help="With the learner fine-tuning beside it.")
@click.option("--dir", "folder", type=PATH, help="Keep the run, its logs and the policy here.")
@json_flag
def command(trials: int, doors: tuple[str, ...], learning: bool, folder: Path | None, as_json: bool) -> None:
    """Stop a simulated robot again and again, and read in the emulator's log when its motors were told.

    A policy is served and drives, two cameras are recorded, a broker is connected, the learner trains.
    """
    chosen = [door for door in DOORS if not doors or door in doors]
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ratchet-bench-")))
        broker = _broker(stack, folder) if "mqtt" in chosen else None
        if broker is None and "mqtt" in chosen:
            say("no mosquitto here: the MQTT door is left out")
            chosen.remove("mqtt")
        show(asyncio.run(measure(folder, chosen, trials, learning, broker)), as_json)


def _broker(stack: contextlib.ExitStack, folder: Path) -> Broker | None:
    if find_mosquitto() is None:
        return None
    broker = Broker(folder / "broker")
    broker.start()
    stack.callback(broker.stop)
    return broker


async def measure(
    folder: Path, doors: list[str], trials: int, learning: bool, broker: Broker | None
) -> dict[str, Any]:
    """Run the robot below ``folder`` and pull each of ``doors`` ``trials`` times; the figures."""
    say("exporting the policy")
    served = await asyncio.to_thread(export, folder / "policy")
    say("starting bench, policy server and robot")
    health = free_port()
    settings = SimSettings(
        bundle=served.bundle, trust=served.trust, size=CAMERA_SIZE, name=NAME,
        broker=None if broker is None else f"127.0.0.1:{broker.port}", health=health, prerendered=True,
    )  # fmt: skip
    sim = await asyncio.to_thread(start_sim, folder / "run", settings)
    with sim:
        async with sim.client() as robot, _loads(sim, robot, served, learning) as steps:
            rig = Rig(sim, robot)
            with bar("e-stop", trials * len(doors)) as update:
                async with open_doors(sim, NAME, None if broker is None else broker.port, health) as opened:
                    await rig.pull_all(doors, opened, trials, update)
            await robot.stop("the benchmark is done")
            trained = steps()
    return _report(rig, trials, learning, trained)


@contextlib.asynccontextmanager
async def _loads(
    sim: SimRobot, robot: RobotClient, served: Served, learning: bool
) -> AsyncIterator[Callable[[], int]]:
    """Something recorded and the learner at work on it; yields how many steps it has trained."""
    with contextlib.ExitStack() as stack:
        if not learning:
            yield lambda: 0
            return
        say("recording what the learner begins with")
        async with robot.control("bench estop") as control:
            await control.enable()
            await control.set_mode("teleop")
            await asyncio.to_thread(sim.bench.demonstrate, 1)
            await control.start_episode(TASK)
            await asyncio.sleep(_RECORDED_S)
            await asyncio.to_thread(sim.bench.stop_demonstration)
            await control.end_episode("success", "bench")
        say("starting the learner")
        child = await asyncio.to_thread(stack.enter_context, learner(sim, served))
        deadline = time.monotonic() + _FIRST_STEP_S
        while not (first := learner_steps(child.log)) and time.monotonic() < deadline:
            await asyncio.to_thread(time.sleep, 0.5)
        yield lambda: learner_steps(child.log) - first


class Rig:
    """A robot that a policy drives and that is recorded, and how soon it stopped each time."""

    def __init__(self, sim: SimRobot, robot: RobotClient) -> None:
        self._sim, self._robot = sim, robot
        self._random = random.Random(0)
        self._episode = 0.0
        self.ms: dict[str, list[float]] = {}
        self.retries = 0

    async def pull_all(self, doors: list[str], opened: dict[str, Door], trials: int, update: Update) -> None:
        """Take turns through the doors, so that all of them meet the same moods of the machine."""
        done = 0
        for _ in range(trials):
            for door in doors:
                await self._trial(None if door == "keyboard" else opened[door])
                done += 1
                update(done)

    async def _trial(self, door: Door | None) -> None:
        """One stop that can be judged: the goals moved when the door (None: the keyboard) was pulled."""
        for _ in range(_RETRIES):
            pulled = await (self._by_key() if door is None else self._by(door))
            await asyncio.sleep(_SEEN_S)
            log = await asyncio.to_thread(self._sim.bench.goal_log)
            state = await self._robot.state()
            if state.mode != "estop":
                raise UsageError(f"the arm is in mode {state.mode} ({state.reason}) after an e-stop")
            frozen_ns = frozen_at(log)
            await self._recover()
            if frozen_ns is not None and frozen_ns >= max(pulled.values()) and moved(log, frozen_ns):
                for name, at_ns in pulled.items():
                    self.ms.setdefault(name, []).append((frozen_ns - at_ns) / 1e6)
                return
            self.retries += 1
        raise UsageError(f"the goals did not move before any of {_RETRIES} stops; read {self._sim.log}")

    async def _by(self, door: Door) -> Pulled:
        async with self._robot.control("bench estop") as control:
            await control.enable()
            await control.set_mode("policy")
            await self._record(control)
            await asyncio.sleep(self._random.uniform(*_MOVING_S))
            return await door()

    async def _by_key(self) -> Pulled:
        terminal = Terminal(self._sim)
        await terminal.start()
        try:
            await asyncio.sleep(self._random.uniform(*_MOVING_S))
            pulled = await terminal.press()
        finally:
            await terminal.stop()
        return pulled

    async def _record(self, control: Any) -> None:
        """An episode is always running; now and then a new one, so that one is also being published."""
        running = bool((await self._robot.state()).episode)
        if running and time.monotonic() - self._episode > _EPISODE_S:
            await control.end_episode("unknown", "bench")
            running = False
        if not running:
            await control.start_episode(TASK)
            self._episode = time.monotonic()

    async def _recover(self) -> None:
        async with self._robot.control("bench estop") as control:
            await control.clear_estop()
        await asyncio.sleep(_TICKS_S)


def frozen_at(log: GoalLog) -> int | None:
    """When the first of the last, equal goals reached the motors, monotonic ns; None for too few writes."""
    if len(log.t_ns) < 2:
        return None
    steps = np.abs(np.diff(log.goal, axis=0)).max(axis=1)
    changes = np.flatnonzero(np.nan_to_num(steps, nan=np.inf) > 0.5 * _TICK_RAD)
    return int(log.t_ns[changes[-1] + 1]) if len(changes) else None


def moved(log: GoalLog, frozen_ns: int) -> bool:
    """Whether the goals were moving in the 50 ms before the freeze: only then does it show when it came."""
    before = (log.t_ns < frozen_ns) & (log.t_ns >= frozen_ns - 50_000_000)
    return bool(before.sum() > 1 and np.ptp(log.goal[before], axis=0).max() > _TICK_RAD)


def _report(rig: Rig, trials: int, learning: bool, steps: int) -> dict[str, Any]:
    doors = {}
    for name, values in sorted(rig.ms.items()):
        p99 = quantile(values, 99)
        doors[name] = {
            "trials": len(values),
            "p50_ms": quantile(values, 50),
            "p99_ms": p99,
            "max_ms": round(max(values), 4),
            "budget_ms": None if name == "cli_from_process_start" else BUDGET_MS,
            "held": None if name == "cli_from_process_start" else p99 < BUDGET_MS,
        }
    return {
        "trials": trials,
        "doors": doors,
        "budget_ms": BUDGET_MS,
        "held": bool(doors)
        and (steps > 0 or not learning)
        and all(door["held"] for door in doors.values() if door["held"] is not None),
        "retries": rig.retries,
        "loads": {
            "policy": DESCRIPTION,
            "cameras": f"2 x {CAMERA_SIZE[0]}x{CAMERA_SIZE[1]}, recorded",
            "learner_steps": steps if learning else None,
        },
        "definitions": DEFINITIONS,
    }


DEFINITIONS = {
    "ms": "from the door being pulled to the first frozen goal in the emulator's log of what reached its "
    "motors",
    "cli": "from when `ratchet stop --emergency` writes the shared word; cli_from_process_start counts from "
    "when its process was started and is mostly the start of the interpreter",
    "keyboard": "the space bar in the terminal of a `ratchet run`",
    "web": "POST /estop over a new connection",
    "retries": "stops that could not be judged, because the goals stood still when the door was pulled",
}
