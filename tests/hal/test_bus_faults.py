"""What the driver does when the bus misbehaves: coast, count, fault, reconnect."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from hal.bench.emulator import EmulatorConfig, ServoEmulator
from hal.bench.first_order import FirstOrderBackend
from hal.bench.wire import EmulatorFaults
from hal.calibration import RAD_PER_TICK, Calibration
from hal.dynamixel.arm import KOCH_FOLLOWER
from hal.dynamixel.bus import ArmBus, BusConfig
from hal.dynamixel.packet import build_fast_status, build_status
from hal.dynamixel.reading import METHODS, Method
from hal.dynamixel.replies import parse_fast_reply, parse_status_replies
from hal.errors import MotorError, PortError

POSE = np.array([0.1, -0.2, 0.3, -0.4, 0.5, -0.6])
TICK = 1.01 * RAD_PER_TICK
SILENT_ELBOW = EmulatorFaults(silent_ids=frozenset({3}))


@pytest.fixture
def backend() -> FirstOrderBackend:
    motors = FirstOrderBackend(time_constant_s=0.01)
    motors.place(POSE)
    return motors


@pytest.fixture
def emulator(backend: FirstOrderBackend) -> Iterator[ServoEmulator]:
    with ServoEmulator(KOCH_FOLLOWER, backend, EmulatorConfig(wire_time=False)) as servo:
        yield servo


@pytest.fixture
def bus(emulator: ServoEmulator) -> Iterator[ArmBus]:
    arm = open_bus(emulator)
    yield arm
    arm.close()


def open_bus(emulator: ServoEmulator, method: Method = "bulk", max_coast: int = 3) -> ArmBus:
    config = BusConfig(margin_ms=50.0, read_method=method, max_coast=max_coast)
    arm = ArmBus(KOCH_FOLLOWER, Calibration.identity(KOCH_FOLLOWER), emulator.port, 1_000_000, config)
    arm.open()
    return arm


@pytest.mark.parametrize("method", METHODS)
def test_a_silent_motor_coasts_with_its_true_age_and_then_faults(
    emulator: ServoEmulator, backend: FirstOrderBackend, method: Method
) -> None:
    arm = open_bus(emulator, method)
    last = arm.read()
    emulator.set_faults(SILENT_ELBOW)
    backend.place(POSE + 0.2)
    for cycle in range(3):
        state = arm.read()
        # Sync reads sample the second group of motors a little later than the first, which stamps the state.
        assert 0 <= state.t_ns - last.t_ns - state.age_ns[2] < 5_000_000
        assert state.position[2] == last.position[2]
        # Motors 1 and 2 come before it in the chain and stay fresh.
        assert state.age_ns[:2].tolist() == [0, 0]
        assert state.position[:2] == pytest.approx(POSE[:2] + 0.2, abs=TICK)
        assert arm.stats.motors[2].coasting == cycle + 1
    with pytest.raises(MotorError, match=r"motor 3 \(elbow_flex\) has not answered .* for 4 cycles"):
        arm.read()
    emulator.set_faults(EmulatorFaults())
    back = arm.read()
    assert back.age_ns.tolist() == [0] * 6
    assert back.position == pytest.approx(POSE + 0.2, abs=TICK)
    assert arm.stats.motors[2].lost == 4
    assert arm.stats.motors[0].lost == 0
    arm.close()


def test_all_motors_silent_blames_the_power(bus: ArmBus, emulator: ServoEmulator) -> None:
    emulator.set_faults(EmulatorFaults(drop=1.0))
    for _ in range(3):
        bus.read()
    with pytest.raises(MotorError, match=r"no motor of koch_follower answers .*; check the arm's power"):
        bus.read()


@pytest.mark.parametrize("method", METHODS)
def test_noise_on_the_wire_never_becomes_a_position(
    emulator: ServoEmulator, backend: FirstOrderBackend, method: Method
) -> None:
    arm = open_bus(emulator, method, max_coast=30)
    emulator.set_faults(EmulatorFaults(drop=0.1, corrupt=0.2))
    for _ in range(25):
        state = arm.read()
        assert state.position == pytest.approx(POSE, abs=TICK)
        assert state.temperature.tolist() == [30.0] * 6
        assert not state.hardware_error.any()
    assert arm.stats.lost > 0
    assert arm.stats.crc_errors > 0
    assert arm.stats.cycles == 25
    arm.close()


def test_set_up_survives_a_noisy_bus_by_retrying(emulator: ServoEmulator) -> None:
    emulator.set_faults(EmulatorFaults(drop=0.02, corrupt=0.02))
    config = BusConfig(margin_ms=30.0, attempts=8, max_coast=10, read_method="bulk")
    arm = ArmBus(KOCH_FOLLOWER, Calibration.identity(KOCH_FOLLOWER), emulator.port, 1_000_000, config)
    arm.open()
    assert arm.stats.retries > 0
    arm.set_torque(True)
    assert arm.torque().all()
    arm.close()


def test_a_lost_reply_costs_wire_time_and_margin_not_the_sdks_34_ms(emulator: ServoEmulator) -> None:
    config = BusConfig(margin_ms=2.0, retries=0, read_method="fast_bulk", max_coast=30)
    arm = ArmBus(KOCH_FOLLOWER, Calibration.identity(KOCH_FOLLOWER), emulator.port, 1_000_000, config)
    arm.open()
    emulator.set_faults(EmulatorFaults(drop=1.0))
    took_ms = []
    for _ in range(15):
        start = time.monotonic()
        arm.read()
        took_ms.append((time.monotonic() - start) * 1e3)
    arm.close()
    assert min(took_ms) >= 3.5  # 1.6 ms of wire and 2 ms of margin
    assert np.median(took_ms) < 20.0


def test_a_reply_after_its_deadline_is_not_taken_for_the_next_one(
    emulator: ServoEmulator, backend: FirstOrderBackend
) -> None:
    config = BusConfig(margin_ms=2.0, read_method="bulk", max_coast=30)
    arm = ArmBus(KOCH_FOLLOWER, Calibration.identity(KOCH_FOLLOWER), emulator.port, 1_000_000, config)
    arm.open()
    emulator.set_faults(EmulatorFaults(delay_ms=40.0))
    arm.read()
    assert arm.stats.lost == 6
    emulator.set_faults(EmulatorFaults())
    time.sleep(0.1)  # by now the late reply lies in the port
    backend.place(POSE + 0.3)
    deadline = time.monotonic() + 5.0
    while (state := arm.read()).age_ns.any():
        assert time.monotonic() < deadline
    assert state.position == pytest.approx(POSE + 0.3, abs=TICK)
    arm.close()


def test_a_port_that_vanishes_is_reported_and_reconnected_to(
    bus: ArmBus, emulator: ServoEmulator, backend: FirstOrderBackend
) -> None:
    bus.set_torque(True)
    emulator.disconnect()
    with pytest.raises(PortError, match=r"has vanished; check the USB cable, then reconnect"):
        bus.read()
    with pytest.raises(PortError, match="there is no serial port"):
        bus.reconnect()
    emulator.connect()
    bus.reconnect()
    assert bus.read().position == pytest.approx(POSE, abs=TICK)
    assert bus.stats.reconnects == 1
    assert backend.torque.all()


def test_torque_off_is_confirmed_by_every_motor(
    bus: ArmBus, emulator: ServoEmulator, backend: FirstOrderBackend
) -> None:
    bus.set_torque(True)
    emulator.set_faults(SILENT_ELBOW)
    with pytest.raises(MotorError, match=r"motor 3 \(elbow_flex\) does not answer"):
        bus.set_torque(False)
    assert backend.torque.tolist() == [False, False, True, False, False, False]


IDS = np.array([1, 2, 3], dtype=np.uint8)
DATA = [bytes([i]) * 15 for i in (1, 2, 3)]


def parse(parser: object, raw: bytes) -> tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    buffer = np.zeros(512, dtype=np.uint8)
    buffer[: len(raw)] = np.frombuffer(raw, dtype=np.uint8)
    blocks, errors = np.zeros((3, 15), np.uint8), np.zeros(3, np.uint8)
    fresh, bad = np.zeros(3, bool), np.zeros(3, np.int64)
    answered = parser(buffer, len(raw), IDS, blocks, errors, fresh, bad)
    return answered, blocks, errors, fresh, bad


def test_single_replies_are_found_among_noise_strangers_and_damage() -> None:
    damaged = bytearray(build_status(2, 0, DATA[1]))
    damaged[12] ^= 1
    raw = b"\xff\xff\xfd" + build_status(9, 0, DATA[0]) + build_status(3, 0x80, DATA[2]) + bytes(damaged)
    answered, blocks, errors, fresh, bad = parse(parse_status_replies, raw + build_status(1, 0, DATA[0])[:-1])
    assert answered == 1
    assert fresh.tolist() == [False, False, True]
    assert bad.tolist() == [0, 1, 0]
    assert errors[2] == 0x80
    assert blocks[2].tobytes() == DATA[2]
    assert not blocks[:2].any()


def test_an_error_reply_counts_as_an_answer_without_data() -> None:
    answered, _, errors, fresh, _ = parse(parse_status_replies, build_status(1, 7))
    assert (answered, errors[0], fresh[0]) == (1, 7, False)


def test_stuffed_replies_are_taken_apart() -> None:
    data = b"\xff\xff\xfd\xfd" + b"\xff\xff\xfd" + bytes(8)
    _, blocks, _, fresh, _ = parse(parse_status_replies, build_status(2, 0, data))
    assert fresh[1]
    assert blocks[1].tobytes() == data


def test_a_fast_chain_is_trusted_up_to_its_first_damage() -> None:
    parts = [(0, i + 1, DATA[i]) for i in range(3)]
    pieces = build_fast_status(parts, 3 * 19)
    whole = b"".join(pieces)
    assert parse(parse_fast_reply, b"\x00\xff" + whole)[0] == 3
    for missing in range(3):
        rest = b"".join(piece for i, piece in enumerate(pieces) if i != missing)
        _, _, _, fresh, _ = parse(parse_fast_reply, rest)
        assert fresh.tolist() == [i < missing for i in range(3)]
    damaged = bytearray(whole)
    damaged[len(pieces[0]) + 5] ^= 0x10
    _, blocks, _, fresh, bad = parse(parse_fast_reply, bytes(damaged))
    assert fresh.tolist() == [True, False, False]
    assert bad.tolist() == [0, 1, 0]
    assert not blocks[1:].any()


def test_a_motor_that_restarted_is_told_from_one_that_stands_at_zero(emulator: ServoEmulator) -> None:
    """Its indirect addresses are gone, so its block reads as zeros, and zero ticks are half a turn away."""
    arm = open_bus(emulator, max_coast=30)
    arm.set_torque(True)
    emulator.reboot(3)
    with pytest.raises(MotorError, match=r"motor 3 .elbow_flex. .* has restarted and forgotten its set-up"):
        for _ in range(30):
            assert arm.read().position == pytest.approx(POSE, abs=TICK)
    arm.reconnect()
    assert arm.read().position == pytest.approx(POSE, abs=TICK)
    assert arm.torque().tolist() == [True, True, False, True, True, True]
    arm.close()


@pytest.mark.parametrize("method", METHODS)
def test_two_motors_of_one_id_are_a_motor_error_and_never_a_position(
    emulator: ServoEmulator, method: Method
) -> None:
    arm = open_bus(emulator, method)
    emulator.set_faults(EmulatorFaults(twin_id=2))
    with pytest.raises(MotorError, match="motor 2"):
        for _ in range(10):
            assert arm.read().position == pytest.approx(POSE, abs=TICK)
    assert arm.stats.motors[1].crc_errors > 0
    emulator.set_faults(EmulatorFaults())
    arm.reconnect()
    assert arm.read().position == pytest.approx(POSE, abs=TICK)
    arm.close()
