"""One emulator and one bus process for all tests here that leave them whole."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from bus_rig import START, Arm, config

from hal.bench.emulator import ServoEmulator
from hal.bench.first_order import FirstOrderBackend
from hal.bench.wire import EmulatorFaults
from hal.dynamixel.arm import KOCH_FOLLOWER
from runtime.bus_handle import BusHandle
from runtime.bus_records import Fault


@pytest.fixture(scope="package")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arm]:
    """One emulator and one bus process for all tests that leave them whole."""
    motors = FirstOrderBackend(time_constant_s=0.02)
    motors.place(np.full(6, START))
    with ServoEmulator(KOCH_FOLLOWER, motors) as emulator:
        handle = BusHandle(config(emulator, tmp_path_factory.mktemp("bus")))
        handle.start()
        yield Arm(handle, emulator, motors)
        handle.stop(timeout_s=1.0)


@pytest.fixture
def arm(shared: Arm) -> Arm:
    """The shared arm, whatever the test before did to it: released at 0.2 rad, no fault, no e-stop."""
    shared.emulator.set_faults(EmulatorFaults())
    shared.emulator.connect()
    if shared.handle.pid is None:
        shared.handle.start()
    before = shared.handle.latest()
    t_ns = -1 if before is None else before.joints.t_ns
    shared.wait(lambda s: s.joints.t_ns > t_ns, "a sample")
    shared.handle.clear_estop()
    shared.handle.clear_fault()
    shared.handle.release()
    shared.motors.place(np.full(6, START))
    shared.wait(lambda s: not s.torque and s.fault is Fault.NONE, "released")
    shared.wait(lambda s: abs(s.joints.position[0] - START) < 2e-3, "at its start")
    return shared
