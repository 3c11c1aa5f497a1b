"""The emulated bus, seen by bare packets."""

from __future__ import annotations

import os
import select
import termios
import time
from collections.abc import Iterator

import numpy as np
import pytest

from hal.bench.emulator import EmulatorConfig, ServoEmulator
from hal.bench.first_order import FirstOrderBackend
from hal.bench.wire import EmulatorFaults
from hal.dynamixel.arm import KOCH_FOLLOWER, ArmSpec, MotorSpec
from hal.dynamixel.errors import StatusError
from hal.dynamixel.packet import ALERT_BIT, Instruction, Packet, PacketParser, build
from hal.errors import BenchError

POSE = np.array([0.1, -0.2, 0.3, -0.4, 0.5, -0.6])
TICKS = [round(2048 + q * 4096 / (2 * np.pi)) for q in POSE]
IDS = range(1, 7)
INSTANT = EmulatorConfig(wire_time=False)


class Wire:
    """A bare client: sends bytes, collects whatever packets come back in time."""

    def __init__(self, path: str, baud: int = termios.B1000000) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
        mode = termios.tcgetattr(self.fd)
        mode[4] = mode[5] = baud
        termios.tcsetattr(self.fd, termios.TCSANOW, mode)

    def ask(self, data: bytes, replies: int = 1, timeout_s: float = 5.0) -> list[Packet]:
        os.write(self.fd, data)
        parser, end = PacketParser(), time.monotonic() + timeout_s
        seen: list[Packet] = []
        while len(seen) < replies and (left := end - time.monotonic()) > 0:
            if select.select([self.fd], [], [], left)[0]:
                seen += parser.feed(os.read(self.fd, 4096))
        return seen

    def status(self, motor_id: int, instruction: int, params: bytes = b"") -> Packet:
        (packet,) = self.ask(build(motor_id, instruction, params))
        assert packet.id == motor_id
        return packet

    def write(self, motor_id: int, address: int, value: int, size: int) -> int:
        data = value.to_bytes(size, "little", signed=value < 0)
        return self.status(motor_id, Instruction.WRITE, address.to_bytes(2, "little") + data).error

    def read(self, motor_id: int, address: int, size: int) -> int:
        packet = self.status(motor_id, Instruction.READ, bytes((address & 255, address >> 8, size, 0)))
        assert packet.error & 0x7F == 0
        return int.from_bytes(packet.params, "little", signed=size == 4)


@pytest.fixture
def backend() -> FirstOrderBackend:
    motors = FirstOrderBackend(time_constant_s=0.02)
    motors.place(POSE)
    return motors


@pytest.fixture
def emulator(backend: FirstOrderBackend) -> Iterator[ServoEmulator]:
    with ServoEmulator(KOCH_FOLLOWER, backend, INSTANT) as servo:
        yield servo


@pytest.fixture
def wire(emulator: ServoEmulator) -> Iterator[Wire]:
    client = Wire(emulator.port)
    yield client
    os.close(client.fd)


def test_goals_reach_the_motor_only_under_torque(wire: Wire, backend: FirstOrderBackend) -> None:
    assert wire.write(2, 116, 3000, 4) == 0
    assert backend.goals[1] == pytest.approx(POSE[1])
    assert wire.write(2, 64, 1, 1) == 0
    assert backend.torque.tolist() == [False, True, False, False, False, False]
    assert backend.goals[1] == pytest.approx((3000 - 2048) * 2 * np.pi / 4096)


@pytest.mark.parametrize(
    ("address", "value", "size", "error"),
    [
        (132, 0, 4, StatusError.ACCESS),  # read only
        (150, 0, 1, StatusError.ACCESS),  # not defined
        (11, 2, 1, StatusError.DATA_RANGE),  # no such operating mode
        (9, 255, 1, StatusError.DATA_RANGE),
        (116, 1, 2, StatusError.DATA_LENGTH),  # half a register
        (118, 1, 2, StatusError.DATA_LENGTH),
        (116, 4096, 4, StatusError.DATA_LIMIT),  # beyond Max_Position_Limit
        (116, -1, 4, StatusError.DATA_LIMIT),
        (116, 100, 4, StatusError.OK),
        (11, 4, 1, StatusError.OK),
    ],
)
def test_a_write_is_refused_with_the_published_error_number(
    wire: Wire, address: int, value: int, size: int, error: int
) -> None:
    before = wire.read(3, 116, 4)
    assert wire.write(3, address, value, size) == error
    if error:
        assert wire.read(3, 116, 4) == before


def test_eeprom_is_locked_while_torque_is_on(wire: Wire) -> None:
    assert wire.write(4, 64, 1, 1) == 0
    assert wire.write(4, 11, 4, 1) == StatusError.ACCESS
    assert wire.write(4, 64, 0, 1) == 0
    assert wire.write(4, 11, 4, 1) == 0


def test_reg_write_waits_for_action(wire: Wire, backend: FirstOrderBackend) -> None:
    wire.write(1, 64, 1, 1)
    goal = (116).to_bytes(2, "little") + (2500).to_bytes(4, "little")
    assert wire.status(1, Instruction.REG_WRITE, goal).error == 0
    assert wire.read(1, 69, 1) == 1
    assert backend.goals[0] == pytest.approx(TICKS[0] * 2 * np.pi / 4096 - np.pi)
    assert wire.status(1, Instruction.ACTION).error == 0
    assert backend.goals[0] == pytest.approx((2500 - 2048) * 2 * np.pi / 4096)
    assert wire.status(1, Instruction.ACTION).error == StatusError.INSTRUCTION


def test_indirect_addresses_gather_and_scatter(wire: Wire) -> None:
    mapping = b"".join(a.to_bytes(2, "little") for a in (132, 133, 134, 135, 65, 146))
    assert wire.status(1, Instruction.WRITE, (168).to_bytes(2, "little") + mapping).error == 0
    data = wire.status(1, Instruction.READ, bytes((224, 0, 6, 0))).params
    assert int.from_bytes(data[:4], "little") == TICKS[0]
    assert data[5] == 30
    assert wire.write(1, 228, 1, 1) == 0
    assert wire.read(1, 65, 1) == 1
    assert wire.write(1, 224, 0, 1) == StatusError.DATA_LENGTH  # part of a read-only register


def test_homing_offset_and_reverse_mode_change_what_is_reported(wire: Wire) -> None:
    assert wire.write(3, 20, 100, 4) == 0
    assert wire.read(3, 132, 4) == TICKS[2] + 100
    assert wire.write(3, 20, 0, 4) == 0
    assert wire.write(3, 11, 4, 1) == 0
    assert wire.write(3, 10, 1, 1) == 0
    assert wire.read(3, 132, 4) == -TICKS[2]


def test_status_return_level_silences_writes_then_reads_but_never_pings(wire: Wire) -> None:
    assert wire.write(5, 68, 1, 1) == 0
    assert wire.ask(build(5, Instruction.WRITE, b"\x41\x00\x01"), timeout_s=0.3) == []
    assert wire.read(5, 65, 1) == 1
    assert wire.ask(build(5, Instruction.WRITE, b"\x44\x00\x00"), timeout_s=0.3) == []
    assert wire.ask(build(5, Instruction.READ, b"\x41\x00\x01\x00"), timeout_s=0.3) == []
    assert wire.status(5, Instruction.PING).params[:2] == (1200).to_bytes(2, "little")


def test_a_damaged_instruction_is_answered_with_a_crc_error(wire: Wire) -> None:
    damaged = bytearray(build(2, Instruction.PING))
    damaged[-1] ^= 1
    (packet,) = wire.ask(bytes(damaged))
    assert (packet.id, packet.error) == (2, StatusError.CRC)


def test_an_unknown_instruction_is_answered_with_an_instruction_error(wire: Wire) -> None:
    assert wire.status(2, 0x77).error == StatusError.INSTRUCTION


def test_a_hardware_error_alerts_cuts_torque_and_stays_until_reboot(
    wire: Wire, emulator: ServoEmulator, backend: FirstOrderBackend
) -> None:
    wire.write(3, 64, 1, 1)
    emulator.set_faults(EmulatorFaults(hardware_error={3: 0x20}))
    assert wire.status(3, Instruction.PING).error == ALERT_BIT
    assert wire.read(3, 70, 1) == 0x20
    assert not backend.torque[2]
    assert wire.write(3, 64, 1, 1) == ALERT_BIT | StatusError.RESULT_FAIL
    emulator.set_faults(EmulatorFaults())
    assert wire.read(3, 70, 1) == 0x20
    assert wire.status(3, Instruction.REBOOT).error == ALERT_BIT
    assert wire.ask(build(3, Instruction.PING), timeout_s=0.02) == []
    time.sleep(0.15)
    assert wire.read(3, 70, 1) == 0
    assert wire.write(3, 64, 1, 1) == 0


def test_the_bus_watchdog_stops_a_torqued_motor_until_it_is_cleared(
    wire: Wire, backend: FirstOrderBackend
) -> None:
    backend.set_time_constant(10.0)
    wire.write(1, 64, 1, 1)
    assert wire.write(1, 98, 25, 1) == 0  # 500 ms: a busy machine may hold this test up for long
    deadline = time.monotonic() + 0.8
    while time.monotonic() < deadline:  # instructions to any motor keep it quiet
        wire.read(2, 132, 4)
    assert wire.read(1, 98, 1) == 25
    wire.write(1, 116, 3000, 4)
    time.sleep(0.8)
    stopped_at = backend.goals[0]
    assert wire.read(1, 98, 1) == 255
    assert stopped_at < 0.5  # it had hardly begun to move to 1.46 rad
    assert wire.write(1, 116, 1000, 4) == StatusError.DATA_RANGE
    assert wire.write(1, 98, 3, 1) == StatusError.DATA_RANGE
    assert backend.goals[0] == stopped_at
    assert wire.write(1, 98, 0, 1) == 0
    assert backend.goals[0] == stopped_at
    assert wire.write(1, 116, 1000, 4) == 0
    assert backend.goals[0] != stopped_at


def test_the_watchdog_sleeps_without_torque(wire: Wire) -> None:
    assert wire.write(1, 98, 1, 1) == 0
    time.sleep(0.15)
    assert wire.read(1, 98, 1) == 1


def test_a_silent_motor_silences_those_behind_it_in_the_chain(wire: Wire, emulator: ServoEmulator) -> None:
    emulator.set_faults(EmulatorFaults(silent_ids=frozenset({3})))
    sync = build(0xFE, Instruction.SYNC_READ, bytes((132, 0, 4, 0, 1, 2, 3, 4)))
    assert [p.id for p in wire.ask(sync, replies=4, timeout_s=0.3)] == [1, 2]
    assert wire.status(4, Instruction.PING).error == 0


def test_dropped_replies_are_gone_and_corrupt_ones_fail_their_crc(
    wire: Wire, emulator: ServoEmulator
) -> None:
    emulator.set_faults(EmulatorFaults(drop=1.0))
    assert wire.ask(build(1, Instruction.PING), timeout_s=0.2) == []
    emulator.set_faults(EmulatorFaults(corrupt=1.0))
    assert wire.ask(build(1, Instruction.PING), timeout_s=0.2) == []
    emulator.set_faults(EmulatorFaults())
    assert wire.status(1, Instruction.PING).error == 0


def test_motors_are_deaf_at_another_baud_rate(emulator: ServoEmulator) -> None:
    client = Wire(emulator.port, termios.B57600)
    assert client.ask(build(1, Instruction.PING), timeout_s=0.2) == []
    os.close(client.fd)


def test_two_motors_of_one_id_garble_each_other(backend: FirstOrderBackend) -> None:
    spec = ArmSpec(
        name="pair",
        motors=(
            MotorSpec(joint="a", id=1, model_name="xl430-w250"),
            MotorSpec(joint="b", id=2, model_name="xl330-m288"),
        ),
    )
    with ServoEmulator(spec, backend, INSTANT) as servo:
        servo.motor(2).poke("ID", 1)
        client = Wire(servo.port)
        assert client.ask(build(1, Instruction.PING), timeout_s=0.2) == []
        os.close(client.fd)


def test_replies_take_their_wire_time(backend: FirstOrderBackend) -> None:
    slow = EmulatorConfig(baud=57_600, check_baud=False)
    with ServoEmulator(KOCH_FOLLOWER, backend, slow) as servo:
        client = Wire(servo.port)
        sync = build(0xFE, Instruction.SYNC_READ, bytes((132, 0, 4, 0, *IDS)))
        start = time.monotonic()
        assert len(client.ask(sync, replies=6)) == 6
        took_s = time.monotonic() - start
        os.close(client.fd)
    assert took_s >= (20 + 6 * 15) * 10 / 57_600 + 6 * 500e-6


def test_the_port_goes_and_comes_back_under_the_same_path(emulator: ServoEmulator) -> None:
    client = Wire(emulator.port)
    emulator.disconnect()
    assert not os.path.exists(emulator.port)
    with pytest.raises(OSError, match="Input/output error"):
        os.write(client.fd, b"x")
    os.close(client.fd)
    emulator.connect()
    again = Wire(emulator.port)
    assert again.status(1, Instruction.PING).error == 0
    os.close(again.fd)


def test_stop_removes_the_port_and_may_be_called_twice(backend: FirstOrderBackend) -> None:
    servo = ServoEmulator(KOCH_FOLLOWER, backend, INSTANT).start()
    path = servo.port
    servo.stop()
    servo.stop()
    assert not os.path.lexists(path)


def test_a_rate_that_motors_do_not_have_is_refused(backend: FirstOrderBackend) -> None:
    with pytest.raises(BenchError, match="12345 baud"):
        ServoEmulator(KOCH_FOLLOWER, backend, EmulatorConfig(baud=12_345))
