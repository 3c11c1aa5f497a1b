"""The bench in real time, reached the way the runtime reaches it: ports, camera addresses, control socket."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hal.bench.control import BenchClient
from hal.bench.launch import BenchHandle, start_bench
from hal.bench.servo_model import ERROR_OVERHEATING
from hal.bench.world import World
from hal.calibration import Calibration
from hal.cameras.opencv import OpenCVCamera
from hal.dynamixel.arm import KOCH_FOLLOWER, KOCH_LEADER, ArmSpec
from hal.dynamixel.bus import ArmBus, BusConfig
from hal.errors import BenchError, MotorError, PortError
from tests.processes import runs

# These tests are about the bench, not about timing: on a busy machine nobody gives the test priority.
PATIENT = BusConfig(margin_ms=25.0)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BenchHandle]:
    with start_bench(tmp_path_factory.mktemp("bench"), seed=3) as handle:
        yield handle


@pytest.fixture
def follower(bench: BenchHandle) -> Iterator[ArmBus]:
    bus = open_bus(KOCH_FOLLOWER, bench.info.follower_port, PATIENT)
    yield bus
    bus.set_torque(False)
    bus.close()


@pytest.fixture
def pan(bench: BenchHandle) -> Iterator[ArmBus]:
    """The follower's first motor alone: nothing is sent after its torque."""
    spec = ArmSpec(name="pan", motors=KOCH_FOLLOWER.motors[:1])
    bus = open_bus(spec, bench.info.follower_port, PATIENT)
    yield bus
    bus.set_torque(False)
    bus.close()


@pytest.fixture
def leader(bench: BenchHandle) -> Iterator[ArmBus]:
    bus = open_bus(KOCH_LEADER, bench.info.leader_port, PATIENT)
    yield bus
    bus.close()


def open_bus(spec: ArmSpec, port: str, config: BusConfig) -> ArmBus:
    bus = ArmBus(spec, Calibration.identity(spec), port, 1_000_000, config)
    bus.open()
    return bus


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return condition()


def test_it_runs_in_real_time(bench: BenchHandle) -> None:
    before, begun = bench.client.info(), time.monotonic()  # in this order: an answer may take a while
    time.sleep(1.0)
    after, elapsed = bench.client.info(), time.monotonic() - begun
    done = after.steps + after.skipped - before.steps - before.skipped
    assert done / elapsed == pytest.approx(240, rel=0.15)


def test_both_arms_begin_at_home_and_stay_there_until_energised(
    bench: BenchHandle, follower: ArmBus, leader: ArmBus
) -> None:
    bench.client.reset(3)
    time.sleep(0.3)
    for bus in (follower, leader):
        np.testing.assert_allclose(bus.read().position, World.home, atol=0.06)
        assert not bus.torque().any()
    assert np.abs(follower.read().effort).max() == 0.0


def test_a_demonstration_through_both_buses_places_the_cube(
    bench: BenchHandle, follower: ArmBus, leader: ArmBus
) -> None:
    bench.client.reset(5, "gap")
    assert bench.client.task().in_gap
    time.sleep(0.1)
    follower.set_torque(True)
    bench.client.demonstrate(5)

    def teleoperate() -> bool:
        follower.write_goals(leader.read().position)
        follower.read()
        return not bench.client.task().demonstrating

    assert wait_until(teleoperate, 20.0)
    task = bench.client.task()
    assert task.success
    assert task.lifted


def test_an_energised_arm_keeps_its_place_when_the_scene_is_reset(
    bench: BenchHandle, follower: ArmBus
) -> None:
    bench.client.reset(1)
    time.sleep(0.1)
    follower.set_torque(True)
    goal = follower.read().position
    goal[0] += 0.4
    bench.client.judge_reset()
    follower.write_goals(goal)
    seen = bench.client.judge()
    assert (seen.writes, seen.torque) == (1, (True,) * 6)
    assert seen.step[0] == pytest.approx(0.4, abs=0.05)
    assert bench.client.goal_log().goal[0, 0] == pytest.approx(goal[0], abs=0.002)
    assert bench.client.judge("leader").writes == 0
    assert wait_until(lambda: abs(follower.read().position[0] - goal[0]) < 0.05, 3.0)
    bench.client.reset(2)
    time.sleep(0.1)
    assert follower.read().position[0] == pytest.approx(goal[0], abs=0.06)


def test_a_reset_right_behind_the_torque_finds_the_arm_energised(bench: BenchHandle, pan: ArmBus) -> None:
    """Often both come within one step of the bench: it must know what is energised before it resets."""
    bench.client.reset(1)
    away = World.home[0] + 0.6

    def arrived() -> bool:
        state = pan.read()
        return abs(state.position[0] - away) < 0.03 and abs(state.velocity[0]) < 0.05

    pan.set_torque(True)
    pan.write_goals(np.array([away]))
    assert wait_until(arrived, 5.0)
    for trial in range(8):
        pan.set_torque(False)
        time.sleep(0.012)  # the bench sees that; a reset now would put the arm home
        pan.set_torque(True)
        bench.client.reset(trial)
        time.sleep(0.012)
        assert abs(pan.read().position[0] - away) < 0.3, f"trial {trial}: the arm was put home"


def test_an_overheated_motor_reports_it_on_the_bus(bench: BenchHandle, follower: ArmBus) -> None:
    bench.client.reset(3)
    bench.client.motor_fault("wrist_flex", heat=60.0)
    try:
        assert wait_until(lambda: bool(follower.read().hardware_error[3] & ERROR_OVERHEATING), 5.0)
        assert follower.read().temperature[3] > 60
        assert not follower.read().hardware_error[:3].any()
    finally:
        bench.client.motor_fault("wrist_flex")


def test_a_silent_motor_is_a_motor_error_and_heals(bench: BenchHandle, leader: ArmBus) -> None:
    bench.client.bus_fault("leader", silent_id=2)
    with pytest.raises(MotorError):
        for _ in range(20):
            leader.read()
    bench.client.bus_fault("leader")
    assert leader.read().position.shape == (6,)


@pytest.mark.parametrize("fault", [{"drop": 1.0}, {"corrupt": 1.0}, {"delay_ms": 300.0}])
def test_replies_that_never_come_right_are_a_motor_error_and_heal(
    bench: BenchHandle, leader: ArmBus, fault: dict[str, float]
) -> None:
    bench.client.bus_fault("leader", **fault)
    with pytest.raises(MotorError):
        for _ in range(20):
            leader.read()
    bench.client.bus_fault("leader")
    assert wait_until(lambda: not leader.read().age_ns.any(), 5.0)


def test_with_default_patience_the_samples_are_true_and_their_age_is_told(bench: BenchHandle) -> None:
    """Load may cost replies, even fault the arm; it never makes a wrong or an unmarked old sample."""
    bench.client.reset(3)
    time.sleep(0.3)
    bus = open_bus(KOCH_LEADER, bench.info.leader_port, BusConfig())
    last_ns = 0
    for _ in range(200):
        lost_before = bus.stats.lost
        try:
            state = bus.read()
        except MotorError:
            assert max(motor.coasting for motor in bus.stats.motors) > BusConfig().max_coast
            bus.reconnect()
            continue
        assert np.count_nonzero(state.age_ns) == bus.stats.lost - lost_before
        np.testing.assert_allclose(state.position, World.home, atol=0.06)
        assert state.t_ns > last_ns
        last_ns = state.t_ns
    assert bus.stats.cycles == 200
    bus.close()


def test_a_pulled_adapter_is_a_port_error_and_comes_back(bench: BenchHandle, leader: ArmBus) -> None:
    bench.client.bus_fault("leader", disconnect=True)
    with pytest.raises((PortError, MotorError)):
        for _ in range(20):
            leader.read()
    with pytest.raises(PortError):
        leader.reconnect()
    bench.client.bus_fault("leader")
    leader.reconnect()
    assert leader.read().position.shape == (6,)


def test_the_real_camera_driver_sees_the_table(bench: BenchHandle) -> None:
    bench.client.reset(3)
    for name, url in bench.info.cameras.items():
        camera = OpenCVCamera(name, url, bench.info.width, bench.info.height, 30)
        camera.start()
        frames = [camera.read(1.0) for _ in range(5)]
        assert not any(frame.repeated for frame in frames)
        picture = frames[-1].image.astype(int)
        red = (picture[..., 0] > 100) & (picture[..., 0] > 2 * picture[..., 1:].max(axis=-1))
        assert red.sum() > 20
        bench.client.camera_fault(name, "freeze")
        assert [camera.read(1.0).repeated for _ in range(6)][-1]
        bench.client.camera_fault(name, "ok")
        camera.stop()


def test_what_makes_no_sense_is_refused_and_does_no_harm(bench: BenchHandle) -> None:
    for op, arguments, message in (
        ("dance", {}, "unknown op"),
        ("reset", {"seed": 1, "region": "moon"}, "full, covered, gap"),
        ("reset", {}, "seed"),
        ("motor_fault", {"joint": "knee"}, "no joint"),
        ("motor_fault", {"joint": "gripper", "friction": "much"}, "float"),
        ("bus_fault", {"arm": "third"}, "follower or leader"),
        ("bus_fault", {"arm": "leader", "drop": 2.0}, "drop"),
        ("camera_fault", {"camera": "front", "mode": "sad"}, "freeze"),
        ("obstacle", {"xyz": [1]}, "unpack"),
    ):
        with pytest.raises(BenchError, match=message):
            bench.client.call(op, **arguments)
    assert bench.client.info().pid == bench.process.pid


def test_two_clients_at_once(bench: BenchHandle) -> None:
    with BenchClient(bench.info.control) as other:
        assert other.info().pid == bench.client.info().pid


def test_no_bench_no_client(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no bench at"):
        BenchClient(tmp_path / "bench.sock")
    with pytest.raises(BenchError, match="too long"):
        start_bench(tmp_path / ("x" * 90), timeout_s=30.0)


def test_it_ends_with_its_parent_and_on_request(tmp_path: Path) -> None:
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom hal.bench.launch import start_bench\n"
        "handle = start_bench(Path(sys.argv[1]))\nprint(handle.info.pid, flush=True)\nos._exit(1)\n"
    )
    parent = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    pid = int(parent.stdout)
    assert wait_until(lambda: not runs(pid), 5.0)
    assert not (tmp_path / "bench.json").exists()

    with start_bench(tmp_path) as handle:
        handle.client.shutdown()
        assert handle.process.wait(5.0) == 0
        assert not Path(handle.info.control).exists()


def test_killed_outright_it_leaves_no_process_and_no_port(tmp_path: Path) -> None:
    with start_bench(tmp_path) as handle:
        children = _children(handle.info.pid)
        assert children
        handle.process.kill()
        handle.process.wait(5.0)
        assert wait_until(lambda: not any(runs(pid) for pid in children), 5.0)
        assert not os.path.lexists(handle.info.follower_port)
        assert not os.path.lexists(handle.info.leader_port)


def test_it_does_not_outlive_its_buses(tmp_path: Path) -> None:
    with start_bench(tmp_path) as handle:
        for pid in _children(handle.info.pid):
            os.kill(pid, signal.SIGKILL)
        assert handle.process.wait(10.0) == 1
        assert "the emulated buses died" in (tmp_path / "bench.log").read_text()


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]
