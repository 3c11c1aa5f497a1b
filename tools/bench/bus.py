"""`ratchet bench bus`: cycles of one arm's bus over their wire time, and CPU beside the SDK's own.

A cycle is one read of every motor's whole state and one write of every goal, one after the other without
a pause. Without ``--port`` it runs against the bench's emulator in a process of its own, with real wire time;
the SDK does the same transactions (group sync read of the same bytes, group sync write) in the same run, in
turn with ours.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

from hal.bench.emulator import EmulatorConfig
from hal.bench.emulator_process import EmulatorProcess
from hal.bench.first_order import FirstOrderBackend
from hal.bench.wire import EmulatorFaults
from hal.calibration import Calibration
from hal.dynamixel.arm import KOCH_FOLLOWER, ArmSpec
from hal.dynamixel.bringup import bring_up
from hal.dynamixel.bus import ArmBus, BusConfig, SetUp
from hal.dynamixel.port import SPEEDS
from hal.dynamixel.tables import BAUD_CODES
from hal.types import Vector
from tools.bench.bus_peer import SdkBus
from tools.bench.bus_port import arm_on, look_on
from tools.bench.common import quantile, show
from tools.errors import UsageError
from tools.options import FiniteRange, json_flag
from tools.progress import bar

_ARM = "bench"
_ROUNDS = 10
_LOSSY_CYCLES = 300
_FAST = 4_000_000
_MS = 1e-6
RATES = sorted(set(SPEEDS) & set(BAUD_CODES.values()))

EXAMPLES = """
\b
Examples:
  ratchet bench bus --json
  ratchet bench bus --baud 4000000
  ratchet bench bus --port /dev/serial/by-id/usb-ROBOTIS_OpenRB-150-if00
"""


@dataclass
class Timing:
    """What cycles cost: wall time of each, ms, and the CPU time of all, ms."""

    cycle_ms: list[float] = field(default_factory=list)
    cpu_ms: float = 0.0

    @property
    def cpu_ms_per_cycle(self) -> float:
        return self.cpu_ms / max(1, len(self.cycle_ms))


@click.command(epilog=EXAMPLES)
@click.option("--cycles", type=click.IntRange(min=20, max=1_000_000), default=2000, show_default=True)
@click.option("--baud", type=int, help="Bus speed [default: the bench at 1 and 4 Mbaud; --port as found].")
@click.option("--port", type=click.Path(path_type=Path), help="A real bus, or anybody's emulator: only read.")
@click.option("--drop", type=FiniteRange(0.0, 0.5), default=0.02, show_default=True, help="Lost replies.")
@json_flag
def command(cycles: int, baud: int | None, port: Path | None, drop: float, as_json: bool) -> None:
    """Time one arm's bus: cycles over wire time, CPU against the SDK's, the cost of a lost reply.

    On the bench the goals are where the motors stand. With --port the motors are found by scanning and only
    read: no EEPROM, no torque, no goal is written; their indirect addresses are, where they can be.
    """
    if baud is not None and baud not in RATES:
        raise UsageError(f"motors do not run at {baud} baud; use one of {', '.join(map(str, RATES))}")
    if port is not None:
        figures = _on_port(str(port), baud, cycles)
    else:
        speeds = (1_000_000, 4_000_000) if baud is None else (baud,)
        parts = [_on_bench(speed, cycles, drop) for speed in speeds]
        figures = parts[0] | {f"at_{part['baud']}": part for part in parts[1:]}
    show(figures, as_json)


def _on_bench(baud: int, cycles: int, drop: float) -> dict[str, Any]:
    """All figures against the emulator at ``baud``."""
    backend = FirstOrderBackend(len(KOCH_FOLLOWER.motors))
    process = EmulatorProcess({_ARM: (KOCH_FOLLOWER, EmulatorConfig(baud=baud))})
    process.start({_ARM: backend})
    try:
        path = process.port(_ARM)
        figures = _compare(KOCH_FOLLOWER, path, baud, cycles, write=True)
        with _open(KOCH_FOLLOWER, path, baud, BusConfig(max_coast=30)) as bus:
            process.set_faults(_ARM, EmulatorFaults(drop=drop))
            lossy = _lossy(bus)
        return figures | lossy | {"drop": drop} | _judge(figures)
    finally:
        process.stop()


def _judge(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The budgets, and which of them are kept."""
    budget = {
        "cycle_hz": 500.0 if figures["baud"] >= _FAST else 200.0,
        "over_wire_percent": 10.0,
        "cpu_ratio": 0.25,
    }
    return {
        "budget": budget,
        "held": {
            "cycle_hz": figures["cycle_hz"] >= budget["cycle_hz"],
            "over_wire_percent": figures["over_wire_percent"] <= budget["over_wire_percent"],
            "cpu_ratio": figures["cpu_ratio"] <= budget["cpu_ratio"],
            "same_method_cpu_ratio": figures["same_method"]["cpu_ratio"] <= budget["cpu_ratio"],
        },
    }


def _on_port(path: str, baud: int | None, cycles: int) -> dict[str, Any]:
    spec, found = arm_on(path, baud)
    figures = _compare(spec, path, found, cycles, write=False)
    figures |= _judge(figures)
    return figures | {"models": [motor.model_name for motor in spec.motors], "ids": spec.ids}


def _compare(spec: ArmSpec, path: str, baud: int, cycles: int, *, write: bool) -> dict[str, Any]:
    """Ours and the SDK's cycles in turn on one port, which only one of them may hold at a time."""
    ours, plain, sdk = Timing(), Timing(), Timing()
    set_up = bring_up if write else look_on
    each = max(2, cycles // _ROUNDS)
    lost = recovered = 0
    wire = plain_wire = 0.0
    method = ""
    with bar(f"{baud} baud", 3 * each * _ROUNDS, "cycles") as done:
        for turn in range(_ROUNDS):
            with _open(spec, path, baud, BusConfig(), set_up) as bus:
                _cycle_ours(bus, each, ours, write)
                wire, method = bus.wire_ms(write), bus.stats.method
                lost += bus.stats.lost
                recovered += sum(motor.recovered for motor in bus.stats.motors)
            with _open(spec, path, baud, BusConfig(read_method="sync"), set_up) as bus:
                blocks, size = bus.blocks, bus.motors[0].block_bytes
                _cycle_ours(bus, each, plain, write)
                plain_wire = bus.wire_ms(write)
            with SdkBus(spec, path, baud, blocks, size) as peer:
                _cycle_sdk(peer, each, sdk, write)
            done(3 * each * (turn + 1))
    p50 = quantile(ours.cycle_ms, 50)
    return {
        "motors": len(spec.motors),
        "baud": baud,
        "method": method,
        "cycles": len(ours.cycle_ms),
        "wire_ms": round(wire, 4),
        "cycle_hz": round(1e3 / statistics.fmean(ours.cycle_ms), 1),
        "cycle_ms_p50": p50,
        "cycle_ms_p99": quantile(ours.cycle_ms, 99),
        "cycle_ms_max": quantile(ours.cycle_ms, 100),
        "over_wire_percent": round((p50 / wire - 1.0) * 100, 1),
        "cpu_ms_per_cycle": round(ours.cpu_ms_per_cycle, 4),
        "sdk_cpu_ms_per_cycle": round(sdk.cpu_ms_per_cycle, 4),
        "cpu_ratio": round(ours.cpu_ms_per_cycle / sdk.cpu_ms_per_cycle, 4),
        "sdk_cycle_ms_p50": quantile(sdk.cycle_ms, 50),
        "same_method": {
            "method": "sync",
            "wire_ms": round(plain_wire, 4),
            "cycle_ms_p50": quantile(plain.cycle_ms, 50),
            "cpu_ms_per_cycle": round(plain.cpu_ms_per_cycle, 4),
            "cpu_ratio": round(plain.cpu_ms_per_cycle / sdk.cpu_ms_per_cycle, 4),
        },
        "lost": lost,
        "recovered": recovered,
    }


def _lossy(bus: ArmBus) -> dict[str, Any]:
    """What a lost reply costs: a cycle in which something was lost against one in which nothing was."""
    whole: list[float] = []
    hurt: list[float] = []
    for _ in range(_LOSSY_CYCLES):
        before = int(bus.counters.sum())
        began = time.monotonic_ns()
        bus.read()
        took = (time.monotonic_ns() - began) * _MS
        (whole if int(bus.counters.sum()) == before else hurt).append(took)
    lost = bus.stats.lost
    recovered = sum(motor.recovered for motor in bus.stats.motors)
    cost = statistics.median(hurt) - statistics.median(whole) if hurt and whole else 0.0
    return {
        "lost": lost,
        "recovered": recovered,
        "lossy_cycles": _LOSSY_CYCLES,
        "lost_reply_costs_ms": round(cost, 4),
        "sdk_lost_reply_costs_ms": SdkBus.TIMEOUT_MS,
    }


@contextmanager
def _open(
    spec: ArmSpec, path: str, baud: int, config: BusConfig, set_up: SetUp = bring_up
) -> Iterator[ArmBus]:
    bus = ArmBus(spec, Calibration.identity(spec), path, baud, config)
    bus.open(set_up)
    try:
        yield bus
    finally:
        bus.close()


@contextmanager
def _counted(timing: Timing) -> Iterator[None]:
    """CPU time of this process goes to ``timing``; no collection falls into it."""
    gc.collect()
    gc.disable()
    began = time.process_time_ns()
    try:
        yield
    finally:
        timing.cpu_ms += (time.process_time_ns() - began) * _MS
        gc.enable()


def _cycle_ours(bus: ArmBus, count: int, timing: Timing, write: bool) -> None:
    goal: Vector = np.array(bus.read().position)
    with _counted(timing):
        for _ in range(count):
            began = time.monotonic_ns()
            bus.read()
            if write:
                bus.write_goals(goal)
            timing.cycle_ms.append((time.monotonic_ns() - began) * _MS)


def _cycle_sdk(peer: SdkBus, count: int, timing: Timing, write: bool) -> None:
    if not peer.read():
        raise UsageError("the SDK's group sync read brings nothing on this bus; check its cables")
    goals = peer.positions()
    with _counted(timing):
        for _ in range(count):
            began = time.monotonic_ns()
            peer.read()
            if write:
                peer.write(goals)
            timing.cycle_ms.append((time.monotonic_ns() - began) * _MS)
