"""Rows about the follower's bus and its motors."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from hal.types import JOINTS
from runtime.remote.client import RobotCallError
from tools.errors import UsageError
from tools.faults.row import Row
from tools.faults.scene import Scene

ELBOW = JOINTS[2]
ELBOW_ID = 3
_HEAT_C_S = 60.0
_HEATED_S = 0.9

Fault = Callable[[Scene], AbstractAsyncContextManager[None]]


def _bus(**faults: Any) -> Fault:
    """The follower's bus with these faults."""

    @contextlib.asynccontextmanager
    async def fault(scene: Scene) -> AsyncIterator[None]:
        bench = scene.rig.bench
        bench.bus_fault("follower", **faults)
        try:
            yield
        finally:
            bench.bus_fault("follower")

    return fault


@contextlib.asynccontextmanager
async def _cable_out(scene: Scene) -> AsyncIterator[None]:
    async with _bus(disconnect=True)(scene):
        yield
        try:
            await scene.control.enable()
        except RobotCallError as refused:
            scene.notes.append(f"enabling without it: {refused}")
        else:
            raise UsageError("an arm whose cable is out was enabled")


def _motor(**faults: Any) -> Fault:
    """The elbow's motor with these faults."""

    @contextlib.asynccontextmanager
    async def fault(scene: Scene) -> AsyncIterator[None]:
        bench = scene.rig.bench
        bench.motor_fault(ELBOW, **faults)
        try:
            yield
        finally:
            bench.motor_fault(ELBOW)

    return fault


@contextlib.asynccontextmanager
async def _overheated(scene: Scene) -> AsyncIterator[None]:
    async with _motor(heat=_HEAT_C_S)(scene):
        await asyncio.sleep(_HEATED_S)
    yield


@contextlib.asynccontextmanager
async def _rebooted(scene: Scene) -> AsyncIterator[None]:
    scene.rig.bench.reboot_motor(ELBOW)
    yield


@contextlib.asynccontextmanager
async def _power_cycle(scene: Scene) -> AsyncIterator[None]:
    for joint in JOINTS:
        scene.rig.bench.reboot_motor(joint)
    await asyncio.sleep(1.0)
    yield


@contextlib.asynccontextmanager
async def _cool_and_power_cycle(scene: Scene) -> AsyncIterator[None]:
    bench = scene.rig.bench
    bench.motor_fault(ELBOW, heat=-_HEAT_C_S)
    await asyncio.sleep(_HEATED_S)
    bench.motor_fault(ELBOW)
    async with _power_cycle(scene):
        yield


def _lost(percent: int, within_s: float = 0.0, **promise: Any) -> Row:
    return Row(
        name=f"replies-lost-{percent}",
        done=f"{percent} % of all replies lost",
        how="the emulator drops each motor's reply with that probability",
        fault=_bus(drop=percent / 100),
        within_s=within_s,
        watch_s=3.0,
        **promise,
    )


def _gives_up(name: str, done: str, how: str, fault: Fault, within_s: float, **more: Any) -> Row:
    """A motor that shuts itself down."""
    return Row(
        name=name,
        done=done,
        how=how,
        fault=fault,
        state="fault",
        within_s=within_s,
        recovers="power-cycle, enable",
        **{"mend": _power_cycle, **more},
    )


ROWS: tuple[Row, ...] = (
    _lost(1, state="moves on", recovers="nothing stops"),
    _lost(5, state="moves on", recovers="nothing stops"),
    _lost(20, state="moves on", recovers="nothing stops"),
    Row(
        name="bits-flipped",
        done="a bit flipped in 1 % of all packets",
        how="the emulator flips one bit in 1 % of the motors' replies and in 1 % of what the host sends",
        fault=_bus(corrupt=0.01, garble=0.01),
        state="moves on",
        within_s=0.0,
        recovers="nothing stops",
        watch_s=3.0,
    ),
    Row(
        name="cable-out-2s",
        done="USB cable out for 2 s and back",
        how="the emulator closes its pseudo-terminal and opens another under the same path",
        fault=_bus(disconnect=True),
        state="fault",
        within_s=0.5,
        recovers="enable",
        watch_s=2.0,
    ),
    Row(
        name="cable-out",
        done="USB cable out for good",
        how="as above, but nothing comes back until the row is over; enabling is refused meanwhile",
        fault=_cable_out,
        state="fault",
        within_s=0.5,
        recovers="enable",
        watch_s=4.0,
    ),
    _gives_up(
        "motor-overloaded",
        "one motor overloaded",
        "the elbow's overload protection trips after 1 s and the motor gives up its torque",
        _motor(strain=True),
        1.5,
        watch_s=2.0,
    ),
    _gives_up(
        "motor-overheating",
        "one motor overheating",
        f"the elbow warms by {_HEAT_C_S:.0f} °C a second and passes its limit of 70 °C after 0.7 s",
        _overheated,
        1.5,
        watch_s=1.5,
        mend=_cool_and_power_cycle,
    ),
    _gives_up(
        "motor-undervolted",
        "one motor under-volted",
        "the elbow's supply falls to 3.2 V, below its limit of 3.5 V",
        _motor(supply=3.2),
        0.5,
    ),
    Row(
        name="motor-rebooted",
        done="one motor rebooted in motion",
        how="the elbow restarts: torque, watchdog and indirect addresses are gone, silent for 0.1 s",
        fault=_rebooted,
        state="fault",
        within_s=0.5,
        recovers="enable",
    ),
    Row(
        name="motor-silent",
        done="one motor silent",
        how="the elbow neither hears nor answers; in a chained reply it silences those behind it",
        fault=_bus(silent_id=ELBOW_ID),
        state="fault",
        within_s=1.0,
        recovers="enable",
    ),
    Row(
        name="duplicate-id",
        done="one motor answering with a duplicate id",
        how="a second motor with the elbow's id on the bus: the bits of both replies collide",
        fault=_bus(twin_id=ELBOW_ID),
        state="fault",
        within_s=1.0,
        recovers="enable",
    ),
)
