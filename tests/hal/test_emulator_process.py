"""Emulated buses in their own process: the same motors, physics kept by the caller."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from hal.bench.emulator import EmulatorConfig
from hal.bench.emulator_process import EmulatorProcess
from hal.bench.first_order import FirstOrderBackend
from hal.bench.wire import EmulatorFaults
from hal.calibration import RAD_PER_TICK, Calibration
from hal.dynamixel.arm import KOCH_FOLLOWER, KOCH_LEADER, ArmSpec
from hal.dynamixel.bus import ArmBus, BusConfig
from hal.errors import BenchError, MotorError, PortError

POSE = np.array([0.1, -0.2, 0.3, -0.4, 0.5, -0.6])
TICK = 1.01 * RAD_PER_TICK


class Physics:
    """Steps two first-order arms in a thread, as the bench's loop does."""

    def __init__(self) -> None:
        self.arms = {"follower": FirstOrderBackend(time_constant_s=0.01), "leader": FirstOrderBackend()}
        for arm in self.arms.values():
            arm.place(POSE)
        config = EmulatorConfig(wire_time=False)
        self.buses = EmulatorProcess({"follower": (KOCH_FOLLOWER, config), "leader": (KOCH_LEADER, config)})
        self.buses.start(self.arms)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ending.wait(0.004):
            for name, arm in self.arms.items():
                self.buses.exchange(name, arm)

    def stop(self) -> None:
        self._ending.set()
        self._thread.join()
        self.buses.stop()

    def open(self, name: str, spec: ArmSpec) -> ArmBus:
        config = BusConfig(margin_ms=50.0, read_method="bulk")
        bus = ArmBus(spec, Calibration.identity(spec), self.buses.port(name), 1_000_000, config)
        bus.open()
        return bus


@pytest.fixture(scope="module")
def physics() -> Iterator[Physics]:
    running = Physics()
    yield running
    running.stop()


def eventually(check: object, what: str) -> None:
    deadline = time.monotonic() + 5.0
    while not check():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def test_goals_cross_to_the_physics_and_the_state_comes_back(physics: Physics) -> None:
    follower, leader = physics.open("follower", KOCH_FOLLOWER), physics.open("leader", KOCH_LEADER)
    assert leader.read().position == pytest.approx(POSE, abs=TICK)
    follower.set_torque(True)
    eventually(lambda: physics.arms["follower"].torque.all(), "torque never reached the physics")
    assert not physics.arms["leader"].torque.any()
    follower.write_goals(np.zeros(6))
    eventually(lambda: np.abs(follower.read().position).max() < 3 * TICK, "the arm never arrived")
    assert leader.read().position == pytest.approx(POSE, abs=TICK)
    follower.set_torque(False)
    eventually(lambda: not physics.arms["follower"].torque.any(), "release never reached the physics")
    follower.close()
    leader.close()


def test_faults_and_disconnection_reach_their_own_bus(physics: Physics) -> None:
    follower, leader = physics.open("follower", KOCH_FOLLOWER), physics.open("leader", KOCH_LEADER)
    physics.buses.set_faults("follower", EmulatorFaults(drop=1.0))
    with pytest.raises(MotorError):
        for _ in range(BusConfig().max_coast + 1):
            follower.read()
    assert leader.read().age_ns.tolist() == [0] * 6
    physics.buses.set_faults("follower", EmulatorFaults())
    physics.buses.disconnect("leader")
    with pytest.raises(PortError, match="has vanished"):
        leader.read()
    physics.buses.connect("leader")
    leader.reconnect()
    assert follower.read().age_ns.tolist() == [0] * 6
    follower.close()
    leader.close()


def test_stop_ends_the_child_and_removes_its_ports() -> None:
    arm = FirstOrderBackend()
    buses = EmulatorProcess({"follower": (KOCH_FOLLOWER, EmulatorConfig())}).start({"follower": arm})
    port = buses.port("follower")
    assert os.path.exists(port)
    buses.stop()
    buses.stop()
    assert not os.path.lexists(port)
    with pytest.raises(BenchError, match="not running"):
        buses.disconnect("follower")
