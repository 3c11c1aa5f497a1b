"""The bus process against emulated servos on a pseudo-terminal: real packets, real signals."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from bus_rig import RELAXED, START, Arm, config

from hal.bench.emulator import ServoEmulator
from hal.bench.first_order import FirstOrderBackend
from hal.dynamixel.arm import KOCH_FOLLOWER, KOCH_LEADER
from hal.dynamixel.bus import BusConfig as ReplyConfig
from runtime.bus_handle import BusConfig, BusHandle
from runtime.bus_records import Fault
from runtime.errors import BusProcessError
from runtime.nouns import Source, Waypoint
from runtime.servo import Phase
from tests.processes import runs
from tests.runtime.waiting import until


def test_publishes_every_cycle_without_energising(arm: Arm) -> None:
    first = arm.sample()
    sample = arm.wait(lambda s: s.index >= first.index + 50, "fifty cycles")
    assert not arm.motors.torque.any()
    assert (sample.phase, sample.torque, sample.fault) == (Phase.RELEASE, False, Fault.NONE)
    np.testing.assert_allclose(sample.joints.position, START, atol=2e-3)
    samples = arm.handle.since(first.index)
    assert [s.index for s in samples] == list(range(first.index + 1, samples[-1].index + 1))
    assert all(b.joints.t_ns > a.joints.t_ns for a, b in itertools.pairwise(samples))


def test_enable_follow_disable(arm: Arm) -> None:
    with pytest.raises(BusProcessError, match="running"):
        arm.handle.start()
    arm.handle.enable()
    assert arm.motors.torque.all()
    np.testing.assert_allclose(arm.motors.goals, START, atol=3e-3)
    for step in range(1, 16):
        arm.command(START + 0.02 * step)
        time.sleep(1 / 30)
    sample = arm.wait(lambda s: abs(s.goal[0] - 0.5) < 1e-6, "the last waypoint")
    assert (sample.phase, sample.command_seq) == (Phase.FOLLOW, arm.seq)
    arm.handle.disable()
    arm.wait(lambda s: not s.torque, "lowered and released")
    assert not arm.motors.torque.any()
    np.testing.assert_allclose(arm.motors.goals[:5], 0.0, atol=3e-3)


def test_malformed_waypoints_are_counted_not_followed(arm: Arm) -> None:
    arm.handle.enable()
    now = time.monotonic_ns()
    for seq, position in enumerate((np.full(6, np.nan), np.zeros(3), np.full(6, np.inf)), start=1):
        arm.handle.command(Waypoint(position, now, now + 10**9, Source.TELEOP, seq))
        arm.wait(lambda s, n=seq: s.dropped_commands == n, "the drop")  # type: ignore[misc]
    np.testing.assert_allclose(arm.motors.goals, START, atol=3e-3)


def test_with_default_patience_samples_are_true_in_order_and_coast_no_longer_than_agreed(
    tmp_path: Path,
) -> None:
    """Load may cost replies, or fault the arm; it changes none of this."""
    motors = FirstOrderBackend(time_constant_s=0.02)
    motors.place(np.full(6, START))
    with ServoEmulator(KOCH_FOLLOWER, motors) as emulator:
        arm = Arm(
            BusHandle(BusConfig(port=emulator.port, run_dir=tmp_path, realtime=RELAXED)), emulator, motors
        )
        arm.handle.start()
        try:
            arm.wait(lambda s: s.index >= 200, "two hundred samples")
            arm.handle.estop()
            arm.wait(lambda s: s.estopped, "the e-stop")
            samples = [s for s in arm.handle.since(-1) if s.fault is Fault.NONE and s.joints.t_ns > 0]
        finally:
            arm.handle.stop(timeout_s=1.0)
    assert not motors.torque.any()
    for sample in samples:
        np.testing.assert_allclose(sample.joints.position, START, atol=2e-3)
    assert all(b.joints.t_ns > a.joints.t_ns and b.lost >= a.lost for a, b in itertools.pairwise(samples))
    coasting = itertools.groupby(bool(s.joints.age_ns.any()) for s in samples)
    longest = max((len(list(run)) for aged, run in coasting if aged), default=0)
    assert longest <= 6 * ReplyConfig().max_coast, "each of six motors may coast in turn"


def test_stop_lets_the_arm_down(arm: Arm) -> None:
    arm.handle.enable()
    arm.command(0.4)
    time.sleep(0.1)
    arm.handle.stop()
    assert not arm.motors.torque.any()
    np.testing.assert_allclose(arm.motors.goals[:5], 0.0, atol=3e-3)
    assert not arm.handle.alive()
    arm.handle.stop()


def test_leader_is_read_only(tmp_path: Path) -> None:
    motors = FirstOrderBackend()
    motors.place(np.full(6, 0.3))
    with ServoEmulator(KOCH_LEADER, motors) as emulator:
        handle = BusHandle(config(emulator, tmp_path, arm="leader", role="leader"))
        report = handle.start()
        arm = Arm(handle, emulator, motors)
        try:
            assert not report.refused
            sample = arm.wait(lambda s: s.joints.seq > 0, "a sample")
            np.testing.assert_allclose(sample.joints.position, 0.3, atol=2e-3)
            with pytest.raises(BusProcessError, match="read only"):
                handle.enable()
            assert not motors.torque.any()
        finally:
            handle.stop()


def test_start_says_why_it_cannot(tmp_path: Path) -> None:
    handle = BusHandle(BusConfig(port="/dev/null", run_dir=tmp_path, calibration=tmp_path / "absent.json"))
    with pytest.raises(BusProcessError, match=r"absent\.json"):
        handle.start()
    with pytest.raises(BusProcessError, match="never started"):
        BusHandle(BusConfig(port="/dev/null", run_dir=tmp_path)).estop()


PARENT = """
import sys, time
from pathlib import Path
from runtime.bus_handle import BusConfig, BusHandle
handle = BusHandle(BusConfig(port="/dev/null", run_dir=Path(sys.argv[1])))
if __name__ == "__main__":
    handle.start()
    print(handle.pid, flush=True)
    time.sleep(60)
"""


def test_dies_with_its_parent(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[3],
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    until(lambda: not runs(child), "the end of the bus process")
