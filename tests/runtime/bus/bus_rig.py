"""A bus process, the emulated servos it talks to over a pseudo-terminal, and the motors behind them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from hal.bench.emulator import ServoEmulator
from hal.bench.first_order import FirstOrderBackend
from hal.dynamixel.bus import BusConfig as ReplyConfig
from runtime.bus_handle import BusConfig, BusHandle, BusSample
from runtime.nouns import Source, Waypoint
from runtime.realtime import RealtimeConfig
from runtime.servo import ServoConfig
from tests.runtime.waiting import WAIT_S, until

START = 0.2
WATCHDOG_MS = 400  # long enough for a busy test machine, short enough to see
SERVO = ServoConfig(ramp_s=0.0, lower_speed=2.0, settle_s=0.0, rest_pose=(0.0,) * 5)
# The emulator shares a busy machine with the test: its replies may come late, and nobody gets priority.
PATIENT = ReplyConfig(margin_ms=25.0)
RELAXED = RealtimeConfig()


@dataclass
class Arm:
    """A handle, the emulator it talks to, and the motors behind."""

    handle: BusHandle
    emulator: ServoEmulator
    motors: FirstOrderBackend
    seq: int = 0

    def sample(self) -> BusSample:
        sample = self.handle.latest()
        assert sample is not None
        return sample

    def wait(self, condition: Callable[[BusSample], bool], what: str) -> BusSample:
        return sample_when(self.handle, condition, what)

    def command(self, position: float, life_s: float = 1.0) -> None:
        self.seq += 1
        now = time.monotonic_ns()
        self.handle.command(
            Waypoint(
                np.full(6, position), now + 33_000_000, now + round(life_s * 1e9), Source.TELEOP, self.seq
            )
        )

    def enable_and_move(self) -> None:
        """Energised and on its way from 0.2 rad towards 1.2 rad, slowly."""
        self.handle.enable()
        self.seq += 1
        now = time.monotonic_ns()
        self.handle.command(
            Waypoint(np.full(6, 1.2), now + 4_000_000_000, now + 2_000_000_000, Source.TELEOP, self.seq)
        )
        self.wait(lambda s: s.joints.position[0] > START + 0.05, "the arm moves")

    def wait_for_watchdog(self) -> None:
        """Until every motor has stopped by itself because its bus is silent."""
        until(
            lambda: all(motor.peek("Bus_Watchdog") == 255 for motor in self.emulator.motors), "the watchdog"
        )

    def still(self) -> bool:
        """The motors' goals no longer change."""
        before = self.motors.goals
        time.sleep(0.15)
        return bool(np.array_equal(before, self.motors.goals))


def config(emulator: ServoEmulator, run_dir: Path, **change: object) -> BusConfig:
    fields: dict[str, object] = {
        "port": emulator.port,
        "run_dir": run_dir,
        "watchdog_ms": WATCHDOG_MS,
        "reconnect_s": 0.1,
        "servo": SERVO,
        "realtime": RELAXED,
        "replies": PATIENT,
        **change,
    }
    return BusConfig.model_validate(fields)


def sample_when(handle: BusHandle, condition: Callable[[BusSample], bool], what: str) -> BusSample:
    """The first sample of ``handle``'s arm that ``condition`` holds for."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        sample = handle.latest()
        if sample is not None and condition(sample):
            return sample
        time.sleep(0.005)
    pytest.fail(f"not within {WAIT_S:g} s: {what}; last {handle.latest()}")
