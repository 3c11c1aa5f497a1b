"""The bus process against emulated servos on a pseudo-terminal: real packets, real signals."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from hal.bench.emulator import ServoEmulator
from hal.bench.first_order import FirstOrderBackend
from hal.bench.wire import EmulatorFaults
from hal.dynamixel.arm import KOCH_FOLLOWER, KOCH_LEADER
from hal.dynamixel.bus import BusConfig as ReplyConfig
from runtime.bus_handle import BusConfig, BusHandle, BusSample, raise_estop
from runtime.bus_records import Fault
from runtime.errors import BusProcessError
from runtime.nouns import Source, Waypoint
from runtime.realtime import RealtimeConfig
from runtime.servo import HoldCause, Phase, ServoConfig

START = 0.2
WATCHDOG_MS = 400  # long enough for a busy test machine, short enough to see
TIMEOUT_S = 20.0
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
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            sample = self.handle.latest()
            if sample is not None and condition(sample):
                return sample
            time.sleep(0.005)
        pytest.fail(f"not within {TIMEOUT_S:g} s: {what}; last {self.handle.latest()}")

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


@pytest.fixture(scope="module")
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


def test_estop_stops_at_once_latches_and_is_cleared_by_name(arm: Arm) -> None:
    arm.enable_and_move()
    arm.handle.estop()
    sample = arm.wait(lambda s: s.estopped and s.cause is HoldCause.ESTOP, "the e-stop")
    assert sample.torque
    assert arm.motors.torque.all(), "an e-stopped arm must not fall"
    assert arm.still()
    arm.command(1.0)
    with pytest.raises(BusProcessError, match="e-stop"):
        arm.handle.enable()
    assert arm.still()
    arm.handle.clear_estop()
    assert arm.wait(lambda s: not s.estopped, "cleared").phase is Phase.HOLD
    raise_estop(arm.handle.config.run_dir)
    arm.wait(lambda s: s.estopped, "an e-stop from elsewhere")


def test_estop_survives_the_bus_process(arm: Arm) -> None:
    arm.handle.estop()
    arm.wait(lambda s: s.estopped, "the e-stop")
    assert arm.handle.pid is not None
    os.kill(arm.handle.pid, signal.SIGKILL)
    _until(lambda: not arm.handle.alive())
    arm.handle.start()
    arm.wait(lambda s: s.estopped and s.cycles > 1, "latched again")
    with pytest.raises(BusProcessError, match="e-stop"):
        arm.handle.enable()


def test_killed_process_leaves_the_motors_stopped_and_is_taken_over(arm: Arm) -> None:
    arm.enable_and_move()
    assert arm.handle.pid is not None
    os.kill(arm.handle.pid, signal.SIGKILL)
    _until(lambda: all(motor.peek("Bus_Watchdog") == 255 for motor in arm.emulator.motors))
    assert not arm.handle.alive()
    assert arm.still()
    assert arm.motors.torque.all(), "stopped, not dropped"
    stopped_at = arm.motors.goals
    assert (stopped_at < 1.1).all()
    with pytest.raises(BusProcessError, match="acknowledge"):
        arm.handle.enable()

    before = arm.sample().index
    arm.handle.start()
    sample = arm.wait(lambda s: s.index > before and s.torque, "taken over")
    assert (sample.phase, sample.cause) == (Phase.HOLD, HoldCause.CLEARED)
    assert arm.still()
    np.testing.assert_allclose(arm.motors.goals, stopped_at, atol=5e-3)
    arm.command(0.5)
    time.sleep(0.1)
    assert arm.sample().phase is Phase.HOLD, "nobody enabled it"
    arm.handle.enable()
    arm.command(float(stopped_at[0]) + 0.1)
    arm.wait(lambda s: s.goal[0] > stopped_at[0] + 0.09, "moves again")


def test_stopped_process_trips_the_watchdog_and_is_a_latched_fault(arm: Arm) -> None:
    arm.enable_and_move()
    pid = arm.handle.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    _until(lambda: all(motor.peek("Bus_Watchdog") == 255 for motor in arm.emulator.motors))
    assert arm.still()
    _until(lambda: not arm.handle.alive())
    os.kill(pid, signal.SIGCONT)
    sample = arm.wait(lambda s: s.fault is Fault.WATCHDOG, "the fault")
    assert "watchdog" in sample.message
    assert arm.still()
    with pytest.raises(BusProcessError, match="clear the fault"):
        arm.handle.enable()
    arm.handle.clear_fault()
    arm.handle.enable()
    arm.command(0.3)
    arm.wait(lambda s: abs(s.goal[0] - 0.3) < 1e-6, "moves again")


def test_cable_out_and_back(arm: Arm) -> None:
    arm.enable_and_move()
    arm.emulator.disconnect()
    sample = arm.wait(lambda s: s.fault is not Fault.NONE, "the fault")
    assert sample.message
    assert arm.handle.alive()
    with pytest.raises(BusProcessError, match="cannot be reached"):
        arm.handle.clear_fault()
    _until(lambda: all(motor.peek("Bus_Watchdog") == 255 for motor in arm.emulator.motors))
    goals = arm.motors.goals
    stale = arm.sample().joints.t_ns
    arm.emulator.connect()
    sample = arm.wait(lambda s: s.joints.t_ns > stale, "samples again")
    assert sample.fault is Fault.PORT, "stays latched"
    arm.command(0.9)
    assert arm.still()
    np.testing.assert_allclose(arm.motors.goals, goals, atol=3e-3)
    arm.handle.clear_fault()
    assert arm.wait(lambda s: s.fault is Fault.NONE, "cleared").phase is Phase.HOLD
    arm.handle.disable()
    arm.wait(lambda s: not s.torque, "let down")


def test_silent_motor_is_a_fault_that_names_it(arm: Arm) -> None:
    arm.handle.enable()
    arm.emulator.set_faults(EmulatorFaults(silent_ids=frozenset({3})))
    sample = arm.wait(lambda s: s.fault is Fault.MOTOR, "the fault")
    assert "elbow_flex" in sample.message
    assert sample.lost > 0


def test_hardware_error_holds_the_others(tmp_path: Path) -> None:
    motors = FirstOrderBackend(time_constant_s=0.02)
    motors.place(np.full(6, START))
    with ServoEmulator(KOCH_FOLLOWER, motors) as emulator:
        arm = Arm(BusHandle(config(emulator, tmp_path)), emulator, motors)
        arm.handle.start()
        try:
            arm.enable_and_move()
            emulator.set_faults(EmulatorFaults(hardware_error={2: 0x20}))
            sample = arm.wait(lambda s: s.fault is Fault.HARDWARE, "the fault")
            assert "motor 2: 0x20" in sample.message
            arm.wait(lambda s: s.phase is Phase.HOLD, "the others hold")
            with pytest.raises(BusProcessError, match="hardware error"):
                arm.handle.clear_fault()
        finally:
            arm.handle.stop(timeout_s=1.0)


def test_lost_replies_are_asked_for_again_and_counted(arm: Arm) -> None:
    arm.handle.enable()
    arm.emulator.set_faults(EmulatorFaults(drop=0.01))
    begun = arm.sample()
    recovered = int(begun.counters.recovered.sum())
    sample = arm.wait(
        lambda s: s.lost > begun.lost + 3 and int(s.counters.recovered.sum()) > recovered, "losses"
    )
    assert sample.fault is Fault.NONE


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


def test_arm_that_is_not_there_is_a_fault_not_a_crash(tmp_path: Path) -> None:
    handle = BusHandle(
        BusConfig(port=str(tmp_path / "no-port"), run_dir=tmp_path, servo=SERVO, realtime=RELAXED)
    )
    handle.start()
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while (sample := handle.latest()) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert sample is not None
        assert sample.fault is Fault.PORT
        assert "no-port" in sample.message
        with pytest.raises(BusProcessError, match="fault"):
            handle.enable()
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
        cwd=Path(__file__).resolve().parents[2],
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    _until(lambda: not _runs(child))


def _runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)
