"""ROBOTIS' own SDK works against the emulated bus, unmodified."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from dynamixel_sdk import (
    COMM_RX_TIMEOUT,
    COMM_SUCCESS,
    GroupBulkRead,
    GroupSyncRead,
    GroupSyncWrite,
    PacketHandler,
    PortHandler,
)

from hal.bench.emulator import EmulatorConfig, ServoEmulator
from hal.bench.first_order import FirstOrderBackend
from hal.dynamixel.arm import KOCH_FOLLOWER

POSE = np.array([0.1, -0.2, 0.3, -0.4, 0.5, -0.6])
TICKS = [round(2048 + q * 4096 / (2 * np.pi)) for q in POSE]
IDS = range(1, 7)
INSTANT = EmulatorConfig(wire_time=False)


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
def sdk(emulator: ServoEmulator) -> Iterator[tuple[PortHandler, PacketHandler]]:
    port = PortHandler(emulator.port)
    assert port.setBaudRate(1_000_000)
    # The SDK waits 34 ms; a loaded test machine may need longer than that.
    port.setPacketTimeout = lambda _: port.setPacketTimeoutMillis(2000.0)
    yield port, PacketHandler(2.0)
    port.closePort()


def test_the_sdk_pings_reads_and_writes(sdk: tuple, backend: FirstOrderBackend) -> None:
    port, packets = sdk
    assert packets.ping(port, 1) == (1060, COMM_SUCCESS, 0)
    assert packets.ping(port, 6) == (1200, COMM_SUCCESS, 0)
    assert packets.read4ByteTxRx(port, 3, 132) == (TICKS[2], COMM_SUCCESS, 0)
    assert packets.write1ByteTxRx(port, 3, 64, 1) == (COMM_SUCCESS, 0)
    assert packets.write4ByteTxRx(port, 3, 116, 2100) == (COMM_SUCCESS, 0)
    assert backend.goals[2] == pytest.approx((2100 - 2048) * 2 * np.pi / 4096)


def test_the_sdk_finds_all_motors_by_broadcast(emulator: ServoEmulator) -> None:
    port = PortHandler(emulator.port)
    assert port.setBaudRate(1_000_000)
    answers, _ = PacketHandler(2.0).broadcastPing(port)
    port.closePort()
    assert {i: row[0] for i, row in answers.items()} == {1: 1060, 2: 1060, 3: 1200, 4: 1200, 5: 1200, 6: 1200}


@pytest.mark.parametrize("fast", [False, True])
def test_the_sdk_group_reads(sdk: tuple, fast: bool) -> None:
    port, packets = sdk
    sync = GroupSyncRead(port, packets, 132, 4)
    bulk = GroupBulkRead(port, packets)
    for i in IDS:
        sync.addParam(i)
        # Lengths that are nobody's id: the SDK's fast bulk read mistakes the one for the other.
        bulk.addParam(i, *((126, 10) if i % 2 else (132, 15)))
    assert (sync.fastSyncRead() if fast else sync.txRxPacket()) == COMM_SUCCESS
    assert [sync.getData(i, 132, 4) for i in IDS] == TICKS
    assert (bulk.fastBulkRead() if fast else bulk.txRxPacket()) == COMM_SUCCESS
    assert [bulk.getData(i, 132, 4) for i in IDS] == TICKS
    assert [bulk.getData(i, 144, 2) for i in IDS if not i % 2] == [50, 50, 50]


def test_the_sdk_sync_writes_goals(sdk: tuple, backend: FirstOrderBackend) -> None:
    port, packets = sdk
    group = GroupSyncWrite(port, packets, 116, 4)
    for i in IDS:
        packets.write1ByteTxRx(port, i, 64, 1)
        group.addParam(i, list((2048 + 10 * i).to_bytes(4, "little")))
    assert group.txPacket() == COMM_SUCCESS
    assert packets.read4ByteTxRx(port, 6, 116)[0] == 2108  # and so the write has been taken in
    assert np.allclose(backend.goals, [10 * i * 2 * np.pi / 4096 for i in IDS])


def test_the_sdk_sees_a_missing_motor_as_a_timeout(sdk: tuple) -> None:
    port, packets = sdk
    port.setPacketTimeout = lambda _: port.setPacketTimeoutMillis(50.0)
    assert packets.ping(port, 9)[1] == COMM_RX_TIMEOUT
